"""The engine's encoders at each instruction level that runs here, and beside other libraries of them.

    python benchmarks/levels.py                     ms of each level and dtype
    python benchmarks/levels.py --before FOLDER     and the ratio to the libraries in FOLDER, in turns

Weights and masks are random, as in benchmarks/engine.py, on one thread and --layers of the layers. A time is
the median of the rounds, and a ratio the median of the ratios within each round: above 1 the installed one is
faster. An error is the root mean square of the difference from torch's answer in float32, over that of the
answer. A library of an older state is what `pip install ./runtime` leaves in fineprune_runtime/_native.
"""

import argparse
import os
import statistics
import time

import encoders
import numpy as np
import torch

from fineprune_runtime import Encoder, dtypes, levels, native

LIBRARIES = "FINEPRUNE_RUNTIME_LIBRARIES"


def made(model: encoders.nn.Sequential, dtype: str, level: str, folder: str | None) -> Encoder:
    """The encoder of the libraries in a folder; None: the installed ones."""
    native.library.cache_clear()
    os.environ.pop(LIBRARIES, None)
    if folder:
        os.environ[LIBRARIES] = folder
    return encoders.engine(model, dtype, 1, level)


def seconds(runs: list[Encoder], x: np.ndarray, rounds: int) -> list[list[float]]:
    """Of each encoder, the seconds of each round; the order turns around from round to round."""
    taken: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        order = range(len(runs))
        for i in order if number % 2 else reversed(order):
            begin = time.perf_counter()
            runs[i](x)
            taken[i].append(time.perf_counter() - begin)
    return taken


def error(run: Encoder, model: encoders.nn.Sequential, x: torch.Tensor) -> float:
    """How far an encoder's answer is from torch's; the call warms it up, too."""
    with torch.inference_mode():
        expected = model(x).numpy()
    return float(np.sqrt(((run(x.numpy()) - expected) ** 2).mean() / (expected**2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before")
    parser.add_argument("--level", nargs="+", choices=levels(), default=levels())
    parser.add_argument("--dtype", nargs="+", choices=dtypes(), default=dtypes())
    parser.add_argument("--shape", nargs="+", choices=list(encoders.SHAPES), default=["base", "minilm"])
    parser.add_argument("--density", nargs="+", type=float, default=[0.1, 0.03])
    parser.add_argument("--case", nargs="+", default=["1x16", "1x32", "1x128", "1x384"], help="BATCHxLENGTH")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    folders = [given.before, None] if given.before else [None]
    titles = ["before, ms", "now, ms", "before / now"] if given.before else ["ms"]
    titles += ["error before", "error now"] if given.before else ["error"]
    print(f"| shape | zeros | batch x length | level | dtype | {' | '.join(titles)} |")
    print("|---|---|---|---|---|" + "---|" * len(titles))
    for shape in given.shape:
        for density in given.density:
            model = encoders.make(shape, density)[: given.layers]
            for level in given.level:
                for dtype in (each for each in given.dtype if each in dtypes(level)):
                    runs = [made(model, dtype, level, folder) for folder in folders]
                    for case in given.case:
                        batch, length = map(int, case.split("x"))
                        x = encoders.tokens(shape, batch, length)
                        errors = [f"{error(run, model, x):.1e}" for run in runs]
                        taken = seconds(runs, x.numpy(), given.rounds)
                        cells = [f"{1000 * statistics.median(each):.2f}" for each in taken]
                        if len(taken) == 2:
                            cells.append(
                                f"{statistics.median(a / b for a, b in zip(*taken, strict=True)):.2f}"
                            )
                        what = f"{shape} | {1 - density:.0%} | {case} | {level} | {dtype}"
                        print(f"| {what} | {' | '.join(cells + errors)} |", flush=True)


if __name__ == "__main__":
    main()
