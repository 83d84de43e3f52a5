"""What a teacher, hidden states, dropout and the way of attention cost in a training step: ratios.

    python benchmarks/teaching.py --rounds 20
    python benchmarks/teaching.py --bf16

Soft movement on all six layers of MiniLM, batch 32 x 40 tokens, a copy of the model as teacher, AdamW,
interleaved step by step on one thread; the median over rounds of the ratio to the first row within a round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForSequenceClassification, TrainingArguments, logging

from fineprune import Distillation, PruningConfig, PruningTrainer
from fineprune.checkpoint.model_folder import minilm_folder

PLAIN, TEACHER, HIDDEN = None, Distillation(2.7, task=0.3), Distillation(2.7, task=0.3, hidden=1.0)
VARIANTS = {
    "sdpa, dropout 0.1": (PLAIN, 0.1, "sdpa"),
    "sdpa, no dropout": (PLAIN, 0.0, "sdpa"),
    "eager, dropout 0.1": (PLAIN, 0.1, "eager"),
    "eager, no dropout": (PLAIN, 0.0, "eager"),
    "eager, no dropout, teacher": (TEACHER, 0.0, "eager"),
    "eager, no dropout, teacher with hidden states": (HIDDEN, 0.0, "eager"),
}


def model(dropout: float, attention: str) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "num_labels": 3}
    return AutoModelForSequenceClassification.from_pretrained(
        minilm_folder(), attn_implementation=attention, **settings
    )


def step_of(name: str, batch: dict, arguments: argparse.Namespace, folder: str) -> Callable[[], None]:
    distillation, dropout, attention = VARIANTS[name]
    taught = {} if distillation is None else {"teacher": model(0.0, attention), "distillation": distillation}
    trainer = PruningTrainer(
        model=model(dropout, attention),
        args=TrainingArguments(folder, max_steps=10_000, bf16=arguments.bf16, use_cpu=True, report_to=[]),
        pruning=PruningConfig("soft_movement", density=0.1),
        train_dataset=[batch],
        **taught,
    )
    trainer.create_optimizer()
    trainer.model.train()

    def step() -> None:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.pruner.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (32, 40), generator=generator)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(0, 3, (32,), generator=generator),
    }
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: step_of(name, batch, arguments, folder) for name in VARIANTS}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(arguments.rounds + 1):
            for name, step in steps.items():
                begin = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - begin)
    first, *_ = VARIANTS
    for name, measured in times.items():
        pairs = zip(measured[1:], times[first][1:], strict=True)  # without the warm-up
        low, middle, high = statistics.quantiles([one / other for one, other in pairs], n=4)
        print(f"{name:46} {statistics.median(measured[1:]):6.2f} s  {middle:5.2f}  ({low:.2f} - {high:.2f})")


if __name__ == "__main__":
    main()
