"""Fine-prune with a plain PyTorch loop: four lines more than without.

    python examples/plain_loop.py [MODEL [STEPS]]

The data are two words and their sentiment, so that the loop is what you look at.
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fineprune
from fineprune.checkpoint.model_folder import minilm_folder

TEXTS = ["a good film", "good acting", "so good", "a bad film", "bad acting", "so bad"]
LABELS = [1, 1, 1, 0, 0, 0]


def main(name: str | None = None, steps: int = 60) -> float:
    """Train for `steps` steps and return the density of the finalized model."""
    name = name or minilm_folder()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch["labels"] = torch.tensor(LABELS)

    config = fineprune.PruningConfig(method="soft_movement", density=0.10)
    pruner = fineprune.prepare(model, config, total_steps=steps)  # in place
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-4))
    model.train()
    for step in range(steps):
        task_loss = model(**batch).loss
        (task_loss + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()  # the masks of the next step
        if step % max(1, steps // 6) == 0:
            print(f"step {step:4}  loss {task_loss.item():.3f}  density {pruner.density:.1%}")

    fineprune.finalize(model)  # an ordinary model, zeros in place
    left = fineprune.summary(model)
    print(left)
    return left.density


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 60)
