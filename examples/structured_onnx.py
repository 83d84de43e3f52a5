"""Prune heads and neurons, remove them, and run the smaller model in ONNX Runtime.

python examples/structured_onnx.py [MODEL [STEPS]]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fineprune
from fineprune.checkpoint.model_folder import minilm_folder

TEXTS = ["a good film", "good acting", "so good", "a bad film", "bad acting", "so bad"]
LABELS = [1, 1, 1, 0, 0, 0]


def main(name: str | None = None, steps: int = 60, out: str = "half-onnx") -> fineprune.Shrunk:
    """Train for `steps` steps, export the shrunk model to the folder `out`, and compare its answers."""
    name = name or minilm_folder()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")

    config = fineprune.PruningConfig(
        method="soft_movement", density=0.5, structure={"attention": "head", "feed_forward": "neuron"}
    )
    pruner = fineprune.prepare(model, config, total_steps=steps)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-4))
    model.train()
    for _ in range(steps):
        loss = model(**batch, labels=torch.tensor(LABELS)).loss + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()

    fineprune.finalize(model)  # heads and neurons are zero
    model.eval()
    shrunk = fineprune.shrink(model)  # now they are gone
    print(shrunk)
    exported = fineprune.export_model(model, tokenizer, Path(out), to="onnx")

    import onnxruntime

    session = onnxruntime.InferenceSession(exported.path / "model.onnx")
    feeds = {entry.name: batch[entry.name].numpy() for entry in session.get_inputs()}
    with torch.inference_mode():
        logits = model(**batch).logits.numpy()
    print(f"largest difference: {np.abs(session.run(None, feeds)[0] - logits).max():.2g}")
    return shrunk


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 60)
