"""Time `encode` of all-MiniLM-L6-v2 in torch against the engine, at one density, on one thread.

    python benchmarks/sentences.py [--density 0.1] [--texts 256] [--rounds 7]

The model is cut by magnitude, for its speed alone: its vectors are of no use. Both sides take turns in each
round, and the ratio is the median over rounds. Needs the extra `demo` and sentence-transformers.
"""

import argparse
import statistics
import tempfile
import time

import torch
from sentence_transformers import SentenceTransformer

import fineprune
import fineprune_runtime
from fineprune.checkpoint.model_folder import minilm_folder
from fineprune.pruning.targets import find_targets
from fineprune.tasks.docstring_pairs import __doc__ as prose

WORDS = " ".join(str(prose).split()).split()


def cut(model: torch.nn.Module, density: float) -> None:
    """Set all but the largest weights of each matrix to zero."""
    for module in find_targets(model).values():
        weight = module.get_parameter("weight").detach()
        count = round(weight.numel() * (1 - density))
        weight[weight.abs() <= weight.abs().flatten().kthvalue(count).values] = 0


def main() -> None:
    """Print the median texts a second of each side, and the median ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    texts = [
        " ".join(WORDS[(7 * row + step) % len(WORDS)] for step in range(8 + row % 24))
        for row in range(asked.texts)
    ]
    dense = SentenceTransformer(minilm_folder(), device="cpu")
    cut(dense, asked.density)
    sides = {"torch": dense.encode}
    with tempfile.TemporaryDirectory() as folder:
        fineprune.save_compact(dense, f"{folder}/small")
        for dtype in fineprune_runtime.dtypes():
            model = fineprune_runtime.load(f"{folder}/small", dtype=dtype, threads=1)
            sides[f"fineprune_runtime {dtype}"] = model.encode
        inside = SentenceTransformer(f"{folder}/small", device="cpu")
        sides["accelerate float32"] = fineprune.accelerate(inside, threads=1).encode
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(asked.rounds + 1):  # the first warms up
        for name, encode in sides.items():
            before = time.perf_counter()
            encode(texts)
            if number:
                seconds[name].append(time.perf_counter() - before)
    for name, times in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(seconds["torch"], times, strict=True))
        print(f"{name:28} {len(texts) / statistics.median(times):8.0f} texts/s  {ratio:5.2f} x torch")


if __name__ == "__main__":
    main()
