"""Fine-prune with accelerate, which brings devices, several processes and mixed precision.

    accelerate launch examples/accelerate_loop.py [MODEL [STEPS]]

`fineprune.prepare` comes first, `accelerator.prepare` second; the rest of the loop is accelerate's own.
"""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import fineprune
from fineprune.checkpoint.model_folder import minilm_folder

TEXTS = ["a good film", "good acting", "so good", "a bad film", "bad acting", "so bad"] * 8
LABELS = [1, 1, 1, 0, 0, 0] * 8


def main(name: str | None = None, steps: int = 60) -> float:
    """Train for `steps` steps and return the density of the finalized model."""
    name = name or minilm_folder()
    torch.manual_seed(0)
    accelerator = Accelerator()
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    rows = [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer))

    config = fineprune.PruningConfig(method="movement", density=0.25)
    pruner = fineprune.prepare(model, config, total_steps=steps)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-4))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    while pruner.steps_done < steps:
        for batch in loader:
            accelerator.backward(model(**batch).loss + pruner.penalty())
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
            if pruner.steps_done == steps:
                break

    model = accelerator.unwrap_model(model)
    fineprune.finalize(model)
    accelerator.print(fineprune.summary(model))
    return fineprune.summary(model).density


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 60)
