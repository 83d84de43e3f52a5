"""The engine's kernel on matrices pruned in blocks, beside single weights and beside other libraries.

    python benchmarks/blocks.py                     GFLOP/s of blocks at several densities, ms to pack them
    python benchmarks/blocks.py --before FOLDER     and of the libraries in FOLDER, in turns
    python benchmarks/blocks.py --costs             the numbers of Costs in runtime/native/kernels.hpp

Weights and places are random, on one thread; a rate is the best of many short rounds, since other work on the
machine only takes away. Useful operations are two for each weight that is left and token.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np

from fineprune_runtime import Linear, Matrix, SparseLinear, dtypes, native

BLOCKS = ((1, 1), (4, 1), (4, 2), (4, 4))
DENSITIES = (0.5, 0.1, 0.05, 0.03)
SHAPES = ((768, 768), (3072, 768), (768, 3072))
SECONDS = 0.001  # of a round
PACKED = 5  # times; the least time counts


def matrix(rows: int, columns: int, density: float, block: tuple[int, int]) -> Matrix:
    """Random weights in random blocks."""
    random = np.random.default_rng(0)
    grid = random.random((rows // block[0], columns // block[1])) < density
    weights = random.standard_normal((rows, columns), np.float32) * np.kron(grid, np.ones(block, np.float32))
    return Matrix.from_dense(weights)


def layers(given: Matrix, dtype: str, folders: list[str | None]) -> tuple[list[SparseLinear], list[float]]:
    """One for each folder of libraries (None: the installed one), and the seconds that packing it took."""
    made, packed = [], []
    for folder in folders:
        native.library.cache_clear()
        os.environ.pop("FINEPRUNE_RUNTIME_LIBRARIES", None)
        if folder:
            os.environ["FINEPRUNE_RUNTIME_LIBRARIES"] = folder
        taken = []
        for _ in range(PACKED):
            begin = time.perf_counter()
            layer = SparseLinear(Linear(given, None), dtype=dtype)
            taken.append(time.perf_counter() - begin)
        made.append(layer)
        packed.append(min(taken))
    return made, packed


def seconds(made: list[SparseLinear], rounds: int) -> list[float]:
    """Of each layer, the least seconds a token, in interleaved rounds."""
    repeats = max(1, int(SECONDS / min(made[0].time_kernel(1)[0] for _ in range(5))))
    best = [float("inf")] * len(made)
    for _ in range(rounds):
        for i, layer in enumerate(made):
            taken, tokens = layer.time_kernel(repeats)
            best[i] = min(best[i], taken / tokens)
    return best


def table(arguments: argparse.Namespace, folders: list[str | None]) -> None:
    """A line for each shape, block, density and type."""
    names = ("before", "now")[-len(folders) :]
    titles = [f"{name}, GFLOP/s" for name in names] + ["now / before"] * len(folders[1:])
    titles += [f"packed {name}, ms" for name in names]
    print(f"| rows x columns | block | zeros | dtype | {' | '.join(titles)} |")
    for rows, columns in SHAPES:
        for block in BLOCKS:
            for density in arguments.density:
                given = matrix(rows, columns, density, block)
                for dtype in dtypes():
                    made, packed = layers(given, dtype, folders)
                    best = seconds(made, arguments.rounds)
                    cells = [f"{2 * len(given.values) / each / 1e9:.0f}" for each in best]
                    cells += [f"{best[0] / each:.2f}" for each in best[1:]]
                    cells += [f"{1000 * each:.2f}" for each in packed]
                    what = f"{rows} x {columns} | {block[0]} x {block[1]} | {1 - density:.0%} | {dtype}"
                    print(f"| {what} | {' | '.join(cells)} |", flush=True)


def line(dtype: str, block: tuple[int, int], rounds: int, folder: str | None) -> tuple[float, float]:
    """Of one block of inputs: what four outputs take without inputs, and for each that they have.

    Through the times at two numbers of inputs: 768 x 384 has one block of inputs in each type.
    """
    low, high = (
        (len(given.values) / 768, seconds(layers(given, dtype, [folder])[0], rounds)[0] / (768 / 4))
        for given in (matrix(768, 384, density, block) for density in (0.1, 0.4))
    )
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return low[1] - slope * low[0], slope


def costs(rounds: int, folder: str | None) -> None:
    """Every one in times of an element alone, which is a quarter of an input of four outputs."""
    for dtype in dtypes():
        group = {"float32": 1, "bfloat16": 2, "int8": 4}[dtype]
        begin, alone = line(dtype, (1, 1), rounds, folder)
        begin_four, column = line(dtype, (4, 1), rounds, folder)
        _, aligned = line(dtype, (4, group), rounds, folder)
        unit = alone / 4
        print(
            f"{dtype}: column {column / unit:.2f}, aligned {aligned * group / unit:.2f}, "
            f"four {(begin_four - begin) / unit:.0f}, again {begin_four / unit:.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--density", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    now = os.environ.get("FINEPRUNE_RUNTIME_LIBRARIES")
    if arguments.costs:
        costs(arguments.rounds, now)
    else:
        table(arguments, [str(arguments.before), now] if arguments.before else [now])


if __name__ == "__main__":
    main()
