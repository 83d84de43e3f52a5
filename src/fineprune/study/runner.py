"""The runs of a study: what is finished is left alone, what was cut is continued, failures are told.

A run is a call of `work`, in a process of its own where several go at once: on this machine through
joblib's loky, on a cluster through its Ray backend, which needs a file system that all of it shares.
"""

import importlib
import json
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from joblib import Parallel, delayed

from fineprune._files import write_text
from fineprune._reason import reason
from fineprune.errors import FinepruneError
from fineprune.study import paper
from fineprune.study.grid import Run
from fineprune.study.page import leave_page
from fineprune.training.recipe import Recipe

FAILURES = "failures.jsonl"
"""In the folder of a study while runs have failed: a line for each."""


_LOCKS = ".study"  # the folder beside the runs for their locks and marks


class Failure(NamedTuple):
    """A run that did not come to its end."""

    run: str
    error: str
    """One line."""

    trace: str
    """The traceback; empty where the line says all."""


class Planned(NamedTuple):
    """A run, how long it is, and how far it has come."""

    run: Run
    length: str
    state: str
    """"finished", "to do", "cut" (to be continued), or "differs": the folder is of another recipe."""


def plan(runs: Iterable[Run], out: Path) -> list[Planned]:
    """The runs in their order. Reads the run folders, and no data."""
    return [Planned(run, length(run), state(run, out)) for run in runs]


def state(run: Run, out: Path) -> str:
    """What the run's folder says, in a word of `Planned.state`."""
    folder = out / run.name
    if not (folder / "recipe.yaml").is_file():
        return "to do"
    try:
        same = Recipe.load(folder / "recipe.yaml") == run.recipe
    except FinepruneError:
        return "differs"
    if not same:
        return "differs"
    return "finished" if (folder / "results.json").is_file() else "cut"


def length(run: Run) -> str:
    """Its steps; where the recipe gives epochs, those, and an estimate where the paper says the size."""
    training = run.recipe.training
    if training.steps is not None:
        return f"{training.steps:,} steps"
    examples = paper.EXAMPLES.get(run.cell.task) if run.recipe.task.to_dict().get("hub") else None
    epochs = f"{training.epochs:g} epochs"
    if examples is None or training.epochs is None:
        return epochs
    steps = training.epochs * examples / (training.batch_size * training.accumulation)
    return f"{epochs}, about {round(steps, -2):,.0f} steps"


def run_study(
    runs: Sequence[Run],
    out: Path,
    jobs: int | None = None,
    ray: bool = False,
    say: Callable[[str], None] = print,
) -> list[Failure]:
    """Run what is not finished, and return what failed; the rest goes on meanwhile.

    `jobs` runs go at once: by default one, or with `ray` as many as the cluster has cores. Those with a
    teacher start when all others are done. Raises `FinepruneError` where another process runs a study
    in the folder; a process that was killed does not hold it.
    """
    backend, jobs = ("ray", jobs or -1) if ray else ("loky", jobs or 1)
    if ray:
        _register_ray()
    try:
        (out / _LOCKS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinepruneError(f"{out}: the runs cannot go there ({error.strerror}); name a folder") from error
    with _alone(out):
        for name in (FAILURES, *(_begun(run.name) for run in runs)):
            (out / name).unlink(missing_ok=True)
        left = [run for run in runs if state(run, out) != "finished"]
        count, failures = len(runs) - len(left), list[Failure]()
        if count:
            say(f"{count} of {len(runs)} runs are finished")
        for taught in (False, True):
            lost = {failure.run for failure in failures}
            wave = [run for run in left if (run.teacher is not None) == taught]
            orphans = [run for run in wave if run.teacher in lost]
            told = [(run.name, Failure(run.name, f"its teacher {run.teacher} failed", "")) for run in orphans]
            ready = [run for run in wave if run not in orphans]
            for name, outcome in chain(told, _outcomes(ready, out, backend, jobs)):
                count += 1
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                    lines = [json.dumps(failure._asdict()) + "\n" for failure in failures]
                    write_text(out / FAILURES, "".join(lines))
                    outcome = f"FAILED: {outcome.error}"
                say(f"{count}/{len(runs)} {name}: {outcome}")
    return failures


def work(run: Run, out: Path, place: str, threads: int | None) -> tuple[str, str | Failure]:
    """One run, in the directory `place` from which its paths are seen: its name, and how it ended."""
    if os.getcwd() != place:
        os.chdir(place)  # a worker of a cluster begins elsewhere
    begun = out / _begun(run.name)
    begun.touch()
    try:
        import torch

        from fineprune.training.run import run_recipe

        if threads is not None:
            torch.set_num_threads(threads)
        # Where a study was killed, its worker may still be at the run: wait for it.
        with FileLock(out / _LOCKS / f"{run.name}.lock"):
            results = run_recipe(run.recipe, out / run.name, resume=True, progress=False)
            leave_page(out / run.name)
    except FinepruneError as error:
        return run.name, Failure(run.name, reason(error), "")
    except Exception as error:  # whatever it is, the other runs go on
        line = f"{type(error).__name__}: {reason(error)}"
        return run.name, Failure(run.name, line, traceback.format_exc())
    finally:
        begun.unlink(missing_ok=True)
    score = f"{results['metric']} {results['score']:.2%}"
    return run.name, f"{score} with {results['density']:.2%} of the weights, {results['seconds']:.0f} s"


def _outcomes(runs: Iterable[Run], out: Path, backend: str, jobs: int) -> Iterator[tuple[str, str | Failure]]:
    """How each run ended, as they end.

    A worker that dies (out of memory, usually) breaks the pool for all. What was under way then runs
    again, each alone, so that the one that kills its process fails and the others do not.
    """
    waiting = {run.name: run for run in runs}
    suspects: list[str] = []
    while waiting:
        batch = [waiting[suspects[0]]] if suspects else list(waiting.values())
        try:
            for name, outcome in _parallel(batch, out, backend, jobs):
                del waiting[name]
                yield name, outcome
        except Exception as error:  # of the pool: `work` keeps those of a run
            if suspects:
                lost = waiting.pop(suspects[0]).name
                line = "its process was killed; is the memory full?"
                known = isinstance(error, BrokenProcessPool)
                yield lost, Failure(lost, line if known else f"its process ended: {reason(error)}", "")
            else:
                suspects = [name for name in waiting if (out / _begun(name)).exists()]
                if not suspects:
                    raise FinepruneError(f"{backend} cannot start a run: {reason(error)}") from error
        suspects = [name for name in suspects if name in waiting]


def _parallel(batch: list[Run], out: Path, backend: str, jobs: int) -> Iterator[tuple[str, str | Failure]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = None if jobs == 1 else max(1, cores // jobs) if jobs > 0 else 1
    order = "list" if backend == "ray" else "generator_unordered"  # Ray tells of none before all have ended
    with warnings.catch_warnings():
        # loky replaces workers that have grown, as these do, and then warns of it.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        pool = Parallel(n_jobs=jobs, backend=backend, return_as=order, pre_dispatch="n_jobs", batch_size=1)
        yield from pool(delayed(work)(run, out, os.getcwd(), threads) for run in batch)


def _begun(name: str) -> str:
    """The file that is there while a run is under way."""
    return f"{_LOCKS}/{name}.begun"


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder; the lock is the system's, so that it ends with the process."""
    lock = FileLock(out / _LOCKS / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FinepruneError(
            f"{out}: a study is running there; wait for it, or name another folder with --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _register_ray() -> None:
    """Make Ray's backend known to joblib."""
    try:
        module = importlib.import_module("ray.util.joblib")
    except ImportError as error:
        raise FinepruneError(f"--ray needs Ray: pip install 'fineprune[ray]' ({reason(error)})") from error
    module.register_ray()
