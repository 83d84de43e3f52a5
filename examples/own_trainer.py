"""Prune with a Trainer of your own: `pruning_trainer` takes any subclass of transformers' Trainer.

    python examples/own_trainer.py [MODEL [STEPS]]

This one weights the classes in its loss. Its `compute_loss` runs as it is written, and pruning adds to it.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import fineprune
from fineprune.checkpoint.model_folder import minilm_folder

TEXTS = ["a good film", "good acting", "so good", "a bad film", "bad acting", "so bad"]
LABELS = [1, 1, 1, 0, 0, 0]


class WeightedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss counts class 1 twice."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):  # type: ignore[no-untyped-def]
        """Return the weighted cross-entropy."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor([1.0, 2.0], device=labels.device)
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels, weight)
        return (loss, outputs) if return_outputs else loss


def main(name: str | None = None, steps: int = 60, out: Path = Path("pruned")) -> float:
    """Train for `steps` steps and return the density of the compact model."""
    name = name or minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    trainer = fineprune.pruning_trainer(WeightedTrainer)(
        model=model,
        args=TrainingArguments(
            out / "training", max_steps=steps, save_strategy="no", learning_rate=1e-4, use_cpu=True
        ),
        train_dataset=Dataset.from_dict({**tokenizer(TEXTS), "labels": LABELS}),
        data_collator=DataCollatorWithPadding(tokenizer),
        pruning=fineprune.PruningConfig(method="soft_movement", density=0.10),
    )
    trainer.train()
    fineprune.finalize(model)
    return fineprune.save_compact(model, out / "small", tokenizer=tokenizer).density


if __name__ == "__main__":
    print(main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 60))
