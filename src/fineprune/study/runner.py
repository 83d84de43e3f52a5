"""The runs of a study: what is finished is left alone, what was cut is continued, failures are told.

A run is a call of `work`, in a process of its own where several go at once: on this machine through
joblib's loky, on a cluster as a task of Ray, which needs a file system that all of it shares.
"""

import importlib
import json
import logging
import os
import signal
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from joblib import Parallel, delayed

from fineprune._files import alone, write_text
from fineprune._messages import one_line
from fineprune.errors import FinepruneError
from fineprune.study import paper
from fineprune.study.grid import Run
from fineprune.study.page import leave_page
from fineprune.study.study_folder import FAILURES
from fineprune.training.run.recipe import Recipe

_LOCKS = ".study"  # the folder beside the runs for their locks and marks
_held: list[FileLock] = []  # of a worker: that of its GPU


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

    `jobs` runs go at once: by default one, or with `ray` as many as the cluster has cores (GPUs, where it
    has some). Those with a teacher start when all others are done. Raises `FinepruneError` where another
    process runs a study in the folder, and where Ray is missing or its cluster is; a process that was
    killed does not hold the folder.
    """
    from fineprune.training.host.stopping import StopsAtSignals  # with transformers, which plans do without

    cluster = _import_ray() if ray else None
    refusal = f"{out}: a study is running there; wait for it, or name another folder with --out"
    with alone(out / _LOCKS / "lock", refusal), StopsAtSignals(), _connected(cluster, say):
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
            for name, outcome in chain(told, _outcomes(ready, out, cluster, jobs)):
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
    outcome: str | Failure
    try:
        import torch

        from fineprune.training.run.train import run_recipe

        if threads is not None:
            torch.set_num_threads(threads)
        # Where a study was killed, its worker may still be at the run: wait for it.
        with FileLock(out / _LOCKS / f"{run.name}.lock"):
            results = run_recipe(run.recipe, out / run.name, resume=True, progress=False)
            leave_page(out / run.name)
        score = f"{results['metric']} {results['score']:.2%}"
        outcome = f"{score} with {results['density']:.2%} of the weights, {results['seconds']:.0f} s"
    except FinepruneError as error:
        outcome = Failure(run.name, one_line(error), "")
    except Exception as error:  # whatever it is, the other runs go on
        line = f"{type(error).__name__}: {one_line(error)}"
        outcome = Failure(run.name, line, traceback.format_exc())
    begun.unlink(missing_ok=True)  # it stays where the process is told to end: the run was lost
    return run.name, outcome


def _outcomes(
    runs: Iterable[Run], out: Path, ray: ModuleType | None, jobs: int | None
) -> Iterator[tuple[str, str | Failure]]:
    """How each run ended, as they end.

    A worker that dies (out of memory, usually) breaks loky's pool for all. What was under way then runs
    again, each alone, so that the one that kills its process fails and the others do not. With Ray that
    is only what was lost.
    """
    waiting = {run.name: run for run in runs}
    suspects: list[str] = []
    while waiting:
        batch = [waiting[suspects[0]]] if suspects else list(waiting.values())
        try:
            for name, outcome in _on_ray(ray, batch, out, jobs) if ray else _parallel(batch, out, jobs or 1):
                del waiting[name]
                yield name, outcome
        except Exception as error:  # of the pool: `work` keeps those of a run
            if suspects:
                lost = waiting.pop(suspects[0]).name
                line = "its process was killed; is the memory full?"
                known = isinstance(error, BrokenProcessPool)
                yield lost, Failure(lost, line if known else f"its process ended: {one_line(error)}", "")
            else:
                suspects = [name for name in waiting if (out / _begun(name)).exists()]
                if not suspects:
                    pool = "Ray" if ray else "loky"
                    raise FinepruneError(f"{pool} cannot start a run: {one_line(error)}") from error
        suspects = [name for name in suspects if name in waiting]


def _parallel(batch: list[Run], out: Path, jobs: int) -> Iterator[tuple[str, str | Failure]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = None if jobs == 1 else max(1, cores // jobs)
    with warnings.catch_warnings():
        # loky replaces workers that have grown, as these do, and then warns of it.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        order = "generator_unordered"
        pool = Parallel(jobs, backend="loky", return_as=order, pre_dispatch="n_jobs", batch_size=1)
        own = work if jobs == 1 else partial(_in_worker, work)  # with one job it is this process
        yield from pool(delayed(own)(run, out, os.getcwd(), threads) for run in batch)


def _in_worker(
    function: Callable[..., tuple[str, str | Failure]], *arguments: Any
) -> tuple[str, str | Failure]:
    """`work` in a process of loky's, whose end by SIGTERM is that of a worker and not of the study."""
    try:
        _take_gpu(arguments[1])
        return function(*arguments)
    except SystemExit as error:
        raise BrokenProcessPool(f"exit code {error.code}") from error


def _take_gpu(out: Path) -> None:
    """Leave this process one GPU of several, until it ends: one that no other worker has, or any."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",")[:count] if given else [str(number) for number in range(count)]
    chosen = names[os.getpid() % count]
    for name in names:
        lock = FileLock(out / _LOCKS / f"gpu-{name.strip()}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _held.append(lock)
        chosen = name
        break
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen  # before CUDA is first used here, and so read


def _on_ray(
    ray: ModuleType, batch: list[Run], out: Path, jobs: int | None
) -> Iterator[tuple[str, str | Failure]]:
    """A task for each run, which takes a core, and a GPU where the cluster has some.

    Not by joblib's backend: that deals the runs out beforehand, so that a short one waits behind a long
    one; it tells of none before all have ended, and ends them all where one loses its worker. A task is
    lost alone. Ray starts it again, once; where that is lost as well, the others end, and then this raises.
    """
    gpus = 1 if ray.cluster_resources().get("GPU") else 0  # a task that asks for none sees none
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=int(len(batch) > 1))(work)
    tasks = (task.options(name=run.name).remote(run, out, os.getcwd(), 1) for run in batch)
    going, broken = list(islice(tasks, jobs)), None
    try:
        while going:
            (ended,), going = ray.wait(going)
            going += islice(tasks, 1)
            try:
                outcome = ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                broken = error.cause  # `work` did not begin: its package or its directory is missing there
            except ray.exceptions.RayError as error:
                broken = BrokenProcessPool(str(error))
            else:
                yield outcome
    finally:
        for left in going:
            ray.cancel(left, force=True)
    if broken:
        raise broken


def _begun(name: str) -> str:
    """The file that is there while a run is under way."""
    return f"{_LOCKS}/{name}.begun"


def _import_ray() -> ModuleType:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise FinepruneError(f"--ray needs Ray: pip install 'fineprune[ray]' ({one_line(error)})") from error


@contextmanager
def _connected(ray: ModuleType | None, say: Callable[[str], None]) -> Iterator[None]:
    """Join the Ray cluster of RAY_ADDRESS, or make one of this machine's cores that ends with the study.

    What the caller has joined is used, and left as it is. With no `ray` nothing happens.
    """
    if ray is None or ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a study tells nobody of itself
    asked = os.environ.get("RAY_ADDRESS") or "local"
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if ":" in asked:  # Ray itself tries for many minutes
            host, _, port = asked.rpartition("/")[2].rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(asked, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's would stay when it has gone
    except Exception as error:
        raise FinepruneError(f"RAY_ADDRESS={asked}: no cluster to run on ({one_line(error)})") from error
    try:
        nodes, cores = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources().get("CPU", 0)
        say(f"Ray: {nodes} machine{'s' * (nodes != 1)}, {cores:.0f} cores")
        yield
    finally:
        ray.shutdown()
