"""Prune the encoder behind a fitted classifier, as SetFit has one, by texts without labels.

    python examples/setfit_like.py [MODEL [STEPS]]

The classifier goes on to read vectors, so the small encoder must give those of the dense one: it is trained
towards them, on unlabelled texts.
"""

import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

import fineprune
import fineprune_runtime
from fineprune.checkpoint.model_folder import minilm_folder

TEXTS = ["a good film", "good acting", "so good", "a bad film", "bad acting", "so bad"]
LABELS = [1, 1, 1, 0, 0, 0]
UNLABELLED = [*TEXTS, "so good a film", "acting so bad", "film", "acting", "so so"]


def main(name: str | None = None, steps: int = 60, out: Path = Path("pruned")) -> tuple[list[int], list[int]]:
    """Train for `steps` steps; return the classes by the dense encoder, and by the small one."""
    name = name or minilm_folder()
    torch.manual_seed(0)
    dense = SentenceTransformer(name, device="cpu")
    classifier = LogisticRegression().fit(dense.encode(TEXTS), LABELS)  # fitted once, and kept
    wanted = torch.from_numpy(dense.encode(UNLABELLED))

    small = SentenceTransformer(name, device="cpu").train()
    config = fineprune.PruningConfig(method="soft_movement", density=0.30)
    pruner = fineprune.prepare(small, config, total_steps=steps)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=3e-4))
    for _ in range(steps):
        found = small(small.preprocess(UNLABELLED))["sentence_embedding"]
        loss = torch.nn.functional.mse_loss(found, wanted) / wanted.var()
        (loss + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    fineprune.finalize(small)

    print(fineprune.save_compact(small, out / "small"))
    encoder = fineprune_runtime.load(out / "small")  # numpy and the engine, no torch
    return (
        classifier.predict(dense.encode(TEXTS)).tolist(),
        classifier.predict(encoder.encode(TEXTS)).tolist(),
    )


if __name__ == "__main__":
    print(*main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 60))
