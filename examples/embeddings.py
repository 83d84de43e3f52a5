"""Prune an embedding model with its own trainer, save it small, and encode texts without torch.

    python examples/embeddings.py [MODEL [STEPS]]

The data are pairs of sentences that mean the same, so that the calls are what you look at.
"""

import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import fineprune
import fineprune_runtime
from fineprune.checkpoint.model_folder import minilm_folder

PAIRS = [
    ("a good film", "so good a film"),
    ("bad acting", "acting so bad"),
    ("good acting", "so good acting"),
    ("a bad film", "so bad a film"),
]


def main(name: str | None = None, steps: int = 60, out: Path = Path("pruned")) -> float:
    """Train for `steps` steps; return the largest difference of the vectors of both ways to encode."""
    model = SentenceTransformer(name or minilm_folder(), device="cpu")
    first, second = zip(*PAIRS, strict=True)
    trainer = fineprune.pruning_trainer(SentenceTransformerTrainer)(
        model=model,
        args=SentenceTransformerTrainingArguments(
            out / "training", max_steps=steps, save_strategy="no", learning_rate=1e-4, use_cpu=True
        ),
        train_dataset=Dataset.from_dict({"anchor": list(first), "positive": list(second)}),
        loss=MultipleNegativesRankingLoss(model),
        pruning=fineprune.PruningConfig(method="soft_movement", density=0.10),
    )
    trainer.train()
    fineprune.finalize(model)

    print(fineprune.save_compact(model, out / "small"))  # opens with SentenceTransformer("…") too
    encoder = fineprune_runtime.load(out / "small")  # numpy and the engine, no torch
    vectors = encoder.encode(list(first))
    print(vectors @ vectors.T)
    return float(abs(vectors - model.encode(list(first))).max())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 60)
