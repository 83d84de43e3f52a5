"""Throws forged inputs at every reader: python tests/fuzz/runner.py --count 100000.

A case is refused with an error of this project, or accepted with its meaning; one that declares a change may
give another answer. Any other exception, a crash, much time or memory, or another meaning is a failure,
printed with the case's index: --first i --count 1 repeats it (with the same --seed, and the same --only).
"""

import argparse
import ctypes
import logging
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it

WALL = 120.0
"""After these seconds a worker that says nothing is ended."""

MEGABYTES = 50
"""What libraries may take for themselves; 4 x the size of the honest input come on top."""

TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of glibc: gives back what was freed, which a case could else take without a sign of it in the peak."""


class Kind(Protocol):
    """One kind of input.

    `share`: its part of all cases, `size`: bytes of its honest input, `seconds`: of the CPU.
    """

    share: float
    size: int
    seconds: float

    def check(self, chance: random.Random, scratch: Path) -> str:
        """Make one input in an empty folder, read it, and return the outcome in a word or two."""


class Case(NamedTuple):
    """What came of one case."""

    index: int
    kind: str
    outcome: str
    failure: str | None
    seconds: float


def kinds_in(folder: Path, names: Iterable[str] | None = None) -> dict[str, Kind]:
    """Every kind by name, its honest inputs made in `folder`."""
    from fuzz import data_files, model_folders, run_folders, settings, shapes, weights

    made = {
        "weights": weights.Weights,
        "shapes": shapes.Shapes,
        "runtime": model_folders.Runtime,
        "torch": model_folders.Torch,
        "deltas": model_folders.Deltas,
        "runs": run_folders.Runs,
        "pages": run_folders.Pages,
        "arrays": run_folders.Arrays,
        "recipes": settings.Recipes,
        "studies": settings.Studies,
        "data": data_files.Data,
    }
    return {name: made[name](folder / name) for name in (names or made)}


def watched(kind: Kind, chance: random.Random, scratch: Path, traced: bool) -> str:
    """What `check` returns; an error where it took too long, or too much memory."""
    before = _peak(reset=True)
    began = time.process_time()
    if traced:
        tracemalloc.start()
    try:
        outcome = kind.check(chance, scratch)
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
    finally:
        if traced:
            tracemalloc.stop()
        took = time.process_time() - began
    most = max(peak, _peak() - before)
    if most > MEGABYTES * 2**20 + 4 * kind.size:
        raise AssertionError(f"took {most >> 20} MB")
    if took > kind.seconds * (4 if traced else 1):
        raise AssertionError(f"took {took:.1f} s")
    return outcome


def _peak(reset: bool = False) -> int:
    """The peak of resident memory in bytes; on Linux since the last reset."""
    try:
        if reset:
            if TRIM:
                TRIM(0)
            Path("/proc/self/clear_refs").write_text("5")
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one(kinds: Mapping[str, Kind], index: int, seed: int) -> Case:
    """Run one case."""
    chance = random.Random(f"{seed} {index}")
    name = chance.choices(list(kinds), [kind.share for kind in kinds.values()])[0]
    began, failure, outcome = time.perf_counter(), None, "FAILED"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            outcome = watched(kinds[name], chance, Path(scratch), traced=index % 16 == 0)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # what is looked for: a panic of Rust code is a BaseException
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"
    return Case(index, name, outcome, failure, time.perf_counter() - began)


def run(kinds: Mapping[str, Kind], indices: Iterable[int], seed: int) -> list[Case]:
    """Run cases in this process."""
    return [one(kinds, index, seed) for index in indices]


def run_in_workers(kinds: Mapping[str, Kind], indices: range, seed: int, workers: int) -> list[Case]:
    """Run cases in forked processes, so that a crash or a hang is one failure."""
    cases: list[Case] = []
    running: dict[
        Any, tuple[Any, range, float]
    ] = {}  # by pipe: process, indices that remain, when it spoke last

    def start(some: range) -> None:
        if some:
            here, there = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.get_context("fork").Process(
                target=_work, args=(kinds, some, seed, there)
            )
            process.start()
            there.close()
            running[here] = (process, some, time.monotonic())

    for worker in range(workers):
        start(indices[worker::workers])
    while running:
        ready = multiprocessing.connection.wait(list(running), timeout=1)
        for pipe, (process, some, since) in list(running.items()):
            if pipe in ready:
                try:
                    case = pipe.recv()
                except EOFError:
                    process.join()
                    why = f"the process ended with {process.exitcode}"
                else:
                    cases.append(case)
                    if case.failure:  # at once, since a long run may be stopped
                        print(f"case {case.index}, {case.kind}: {case.failure}", file=sys.stderr, flush=True)
                    running[pipe] = (process, some[1:], time.monotonic())
                    continue
            elif time.monotonic() - since > WALL:
                process.kill()
                process.join()
                why = f"no answer in {WALL:.0f} s"
            else:
                continue
            del running[pipe]
            if some:
                cases.append(Case(some[0], "?", "FAILED", why, 0.0))
                start(some[1:])
    return sorted(cases)


def _work(kinds: Mapping[str, Kind], indices: range, seed: int, pipe: Any) -> None:
    limit = 8 * 2**30 + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # a bomb hits this process alone
    for index in indices:
        pipe.send(one(kinds, index, seed))


def report(cases: list[Case]) -> list[str]:
    """The counts by kind and outcome with the milliseconds of a case, then the failures."""
    lines = []
    for name in sorted({case.kind for case in cases}):
        mine = [case for case in cases if case.kind == name]
        counts = Counter(case.outcome for case in mine)
        each = 1000 * sum(case.seconds for case in mine) / len(mine)
        told = ", ".join(f"{times:,} {outcome}" for outcome, times in counts.most_common())
        lines.append(f"{name:10} {len(mine):8,} cases, {each:6.1f} ms each: {told}")
    return lines + [f"case {case.index}, {case.kind}: {case.failure}" for case in cases if case.failure]


def quiet() -> None:
    """One thread, and no output of the libraries: as under pytest, warnings are errors but for our own."""
    import torch
    import transformers

    from fineprune.errors import FinepruneWarning

    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", FinepruneWarning)


def main() -> int:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("count", 10_000), ("first", 0), ("seed", 0), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="+", help="these kinds alone, which numbers the cases anew")
    given = parser.parse_args()
    quiet()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kinds = kinds_in(Path(folder), given.only)
        indices = range(given.first, given.first + given.count)
        cases = run_in_workers(kinds, indices, given.seed, given.workers)
    failures = sum(case.failure is not None for case in cases)
    print(*report(cases), sep="\n")
    print(f"{len(cases):,} cases in {time.monotonic() - began:.0f} s, {failures} failures")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
