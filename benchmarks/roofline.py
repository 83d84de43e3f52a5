"""The kernel's share of what this core can do: benchmarks/engine.py --roofline.

roofline.cpp measures the core, the engine its own kernel: full tiles one after another, without the
tokens' way into them and out, which an encoder has at its two ends alone. Useful operations are two for
each weight that is left and token; padding is not among them. Everything is the best of its rounds: other
work on the machine only takes away.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import encoders
import numpy as np

from fineprune._files import write_json
from fineprune.inference.bench.timing import machine
from fineprune_runtime import Linear, Matrix, SparseLinear, dtypes

SOURCE = Path(__file__).with_name("roofline.cpp")
REPEATS = 20  # tiles in a round
ITEM = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes of an activation


def build(folder: str) -> Path:
    """Compile roofline.cpp for this very processor."""
    program = Path(folder) / "roofline"
    flags = ["-O3", "-std=c++17", "-march=native", "-ffp-contract=fast"]
    subprocess.run(["g++", *flags, "-o", program, SOURCE], check=True)
    return program


def core(program: Path) -> dict[str, float]:
    """GFLOP/s (int8: GOP/s) of multiply-adds by type, and GB/s of loads from 16, 256 and 8,192 KB."""
    told = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: float(value) for name, value in map(str.split, told.splitlines())}


def layer(rows: int, columns: int, density: float, dtype: str) -> tuple[SparseLinear, int]:
    """A layer with random weights at random places, and how many they are."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((rows, columns), np.float32)
    weights[random.random(weights.shape) >= density] = 0
    made = Matrix.from_dense(weights)
    return SparseLinear(Linear(made, None), dtype=dtype), len(made.values)


def measure(
    outputs: int, inputs: int, dtype: str, densities: list[float], rounds: int
) -> list[dict[str, Any]]:
    """A row for each density of one matrix: useful GFLOP/s, and GB/s of activations."""
    rows = []
    for density in densities:
        made, kept = layer(outputs, inputs, density, dtype)
        rates = []
        for _ in range(rounds):
            seconds, tokens = made.time_kernel(REPEATS)
            rates.append(kept * tokens / 1e9 / seconds)
        row = {"rows": outputs, "columns": inputs, "density": density, "dtype": dtype}
        rows.append(row | {"rate": 2 * max(rates), "loads": ITEM[dtype] * max(rates)})
    return rows


def run(arguments: argparse.Namespace) -> None:
    """All matrices of the shapes that are asked, on one thread, into one file."""
    peaks, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        sizes = [(encoders.SHAPES[name].hidden, encoders.SHAPES[name].inner) for name in arguments.shape]
        for hidden, inner in dict.fromkeys(sizes):
            for outputs, inputs in ((hidden, hidden), (inner, hidden), (hidden, inner)):
                # Before each matrix: the core is another one when its neighbors are busy.
                peaks.append(core(program))
                for dtype in dtypes():
                    rows += measure(outputs, inputs, dtype, arguments.density, arguments.rounds)
                    print(json.dumps(rows[-1]), flush=True)
    peak = {name: max(each[name] for each in peaks) for name in peaks[0]}
    found = {"core": peak, "rows": rows, "rounds": arguments.rounds, "machine": machine(1)}
    write_json(arguments.out / "roofline.json", found)
