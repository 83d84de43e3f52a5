"""Prune a reranker with its own trainer and a dense teacher, save it small, and rank without torch.

python examples/cross_encoder.py [MODEL [STEPS]]
"""

import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)

import fineprune
import fineprune_runtime
from fineprune.checkpoint.model_folder import minilm_folder

QUERY, PASSAGES = "a good film", ["so good", "bad acting", "a film so bad", "good acting"]
LABELS = [1.0, 0.0, 0.0, 1.0]


def train(model: CrossEncoder, steps: int, out: Path, **pruning: object) -> None:
    """Train a cross-encoder; `pruning` are the arguments of fineprune's trainer."""
    rows = {"query": [QUERY] * len(PASSAGES), "passage": PASSAGES, "label": LABELS}
    arguments = CrossEncoderTrainingArguments(
        out / "training", max_steps=steps, save_strategy="no", learning_rate=1e-4, use_cpu=True
    )
    kind = fineprune.pruning_trainer(CrossEncoderTrainer)
    kind(model=model, args=arguments, train_dataset=Dataset.from_dict(rows), **pruning).train()


def main(name: str | None = None, steps: int = 60, out: Path = Path("pruned")) -> list[str]:
    """Train a teacher and a pruned student for `steps` steps each; return the passages, the best first."""
    name = name or minilm_folder()
    teacher = CrossEncoder(name, num_labels=1, device="cpu")
    train(teacher, steps, out, pruning=None)
    student = CrossEncoder(name, num_labels=1, device="cpu")
    config = fineprune.PruningConfig(method="soft_movement", density=0.10)
    train(student, steps, out, pruning=config, teacher=teacher)  # learns its scores, too
    fineprune.finalize(student)

    print(fineprune.save_compact(student, out / "small"))  # opens with CrossEncoder("…") too
    judge = fineprune_runtime.load(out / "small")  # numpy and the engine, no torch
    scores = [found.score for found in judge.predict([QUERY] * len(PASSAGES), PASSAGES)]
    ranked = sorted(zip(scores, PASSAGES, strict=True), reverse=True)
    print(*(f"{score:.3f}  {passage}" for score, passage in ranked), sep="\n")
    return [passage for _, passage in ranked]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 60)
