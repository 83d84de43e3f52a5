"""What a weight costs in memory while it trains: bytes for each pruned one, by method and `score_optimizer`.

    python benchmarks/memory.py                     # every variant in a process of its own; writes the table
    python benchmarks/memory.py --only movement     # one of them, in this process, as JSON

The encoder of BERT-base's shape (4 of its layers, random weights), float32, AdamW, a batch of 1 x 8 tokens
so that activations are next to nothing. After four steps, the tensors that belong to the pruned matrices are
walked: parameters, gradients, optimizer state, masks, and what autograd saved for the loss and the penalty
beyond what the dense model saves. `peak` is the check: what the process grew to beyond what it was before
the model was made, over the weights; all that is transient is in it, and so are the embeddings' and the
pooler's bytes. `original` is not measured: the first scripts kept scores, their gradient and Adam's two
moments as four float32 copies beside the weight's own four, and made the mask anew in each forward pass.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import fineprune
from fineprune.pruning.targets import find_targets

VARIANTS: dict[str, dict | None] = {
    "dense": None,
    "magnitude": {"method": "magnitude"},
    "movement": {"method": "movement"},
    "movement, adam_bf16": {"method": "movement", "score_optimizer": "adam_bf16"},
    "movement, sgd": {"method": "movement", "score_optimizer": "sgd"},
    "soft_movement": {"method": "soft_movement"},
    "soft_movement, adam_bf16": {"method": "soft_movement", "score_optimizer": "adam_bf16"},
    "soft_movement, sgd": {"method": "soft_movement", "score_optimizer": "sgd"},
    "l0": {"method": "l0"},
    "l0, adam_bf16": {"method": "l0", "score_optimizer": "adam_bf16"},
    "l0, sgd": {"method": "l0", "score_optimizer": "sgd"},
    "keep_zeros": {"method": "keep_zeros"},
}
PARTS = ("parameters", "gradients", "optimizer", "buffers", "saved")
STEPS = 4


def make(layers: int, width: int) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).train()


def saved_bytes(model: nn.Module, pruner: fineprune.Pruner | None, batch: dict) -> int:
    """What the loss and the penalty save for backward beside parameters and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Alive while we count: a freed address could come twice.
        kept = model(**batch).loss, None if pruner is None else pruner.penalty()
    del kept
    return sum(sizes.values())


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system has no /proc/self/status")


def train(settings: dict | None, layers: int, width: int) -> tuple:
    """A model after its steps, its pruner and optimizer, of each matrix (weight, scores, buffers), and the
    batch.
    """
    model = make(layers, width)
    for embedding in (module for module in model.modules() if isinstance(module, nn.Embedding)):
        embedding.weight.requires_grad_(False)
    ids = torch.randint(1, 100, (1, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids[:, 0] % 2}
    if settings is None:
        matrices = [(module.weight, None, []) for module in find_targets(model).values()]
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
        pruner = None
    else:
        if settings["method"] == "keep_zeros":
            with torch.no_grad():
                for module in find_targets(model).values():
                    module.weight.mul_(torch.rand_like(module.weight) < 0.1)
        config = fineprune.PruningConfig(density=0.1, warmup=0, cooldown=1, **settings)
        pruner = fineprune.prepare(model, config, STEPS)
        optimizer = pruner.optimizer(torch.optim.AdamW, lr=1e-4)
        matrices = [(one.weight, one.masked.scores, list(one.masked.buffers())) for one in pruner.targets]
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(**batch).loss + (0 if pruner is None else pruner.penalty())
        loss.backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
    return model, pruner, optimizer, matrices, batch


def measure(settings: dict | None, layers: int, width: int) -> dict[str, float]:
    """Bytes for each weight of the pruned matrices; `saved` is not yet less that of the dense model."""
    train(settings, 1, 16)  # what torch sets up once is not the model's
    before = resident("VmRSS")
    model, pruner, optimizer, matrices, batch = train(settings, layers, width)
    peak = resident("VmHWM") - before
    tensors = [tensor for weight, scores, _ in matrices for tensor in (weight, scores) if tensor is not None]
    states = [value for tensor in tensors for value in optimizer.state[tensor].values()]
    bytes_of = {
        "parameters": tensors,
        "gradients": [tensor.grad for tensor in tensors],
        "optimizer": [value for value in states if isinstance(value, Tensor)],
        "buffers": [buffer for *_, buffers in matrices for buffer in buffers],
    }
    total = {part: sum(t.numel() * t.element_size() for t in found) for part, found in bytes_of.items()}
    total |= {"saved": saved_bytes(model, pruner, batch), "peak": peak}
    weights = sum(weight.numel() for weight, *_ in matrices)
    return {part: size / weights for part, size in total.items()} | {"weights": weights}


def in_a_process(name: str, layers: int, width: int) -> dict[str, float]:
    own = ["--only", name, "--layers", str(layers), "--width", str(width)]
    done = subprocess.run(
        [sys.executable, __file__, *own],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def table(found: dict[str, dict[str, float]]) -> str:
    names = ("parameters", "gradients", "optimizer state", "mask", "saved", "all", "above dense", "peak")
    lines = [f"| bytes a weight | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    dense = found["dense"]
    base = sum(dense[part] for part in PARTS if part != "saved")
    for name, own in found.items():
        numbers = [own[part] - (dense["saved"] if part == "saved" else 0) for part in PARTS]
        cells = [*numbers, sum(numbers), sum(numbers) - base]
        shown = " | ".join(f"{cell:.1f}" for cell in cells)
        lines.append(f"| {name} | {shown} | {own['peak']:.1f} |")
    lines.append("| *original (not measured)* | 8 | 8 | 16 | – | – | 32 | 16 | – |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=VARIANTS)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(VARIANTS[arguments.only], arguments.layers, arguments.width)))
        return
    found = {name: in_a_process(name, arguments.layers, arguments.width) for name in VARIANTS}
    made = table(found)
    print(f"{found['dense']['weights']:,} weights in the pruned matrices\n{made}", end="")
    (arguments.results / "memory.md").write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
