"""Run a study on this machine; several runs at the same time each have a process of joblib's loky."""

import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from fineprune.training.host.preemption import SIGNALS, AnswersSignals, ending
from fineprune_runtime.processors import usable_processors

Outcome = TypeVar("Outcome")
_STOPPED = "stopped"
"""The outcome of a run that was stopped with its study, and the file, among the locks, that says so."""

_WAIT = 1.0  # seconds for the study to say that it was stopped, where one signal goes to all processes
_gpu_locks: list[FileLock] = []  # of a worker process: the lock of the GPU that it uses
_at_work = False  # whether this worker process has a run


def outcomes(
    work: Callable[..., Outcome], batch: Sequence[Any], out: Path, locks: Path, jobs: int
) -> Iterator[Outcome]:
    """Yield what `work(run, out, directory, threads)` returns for each run, as the runs end.

    With one job this process does the work. Else each of `jobs` processes has its share of the cores, and a
    GPU of its own where there are several; `locks` is the folder for their lock files.

    Raises:
        BrokenProcessPool: where a process ended in the middle of a run.
        KeyboardInterrupt, SystemExit: where a signal came, once the runs have saved a checkpoint.
    """
    if jobs == 1:
        for run in batch:
            yield work(run, out, os.getcwd(), None)
        return
    threads = max(1, usable_processors() // jobs)
    call = partial(_in_worker, work, locks, out, os.getcwd(), threads)
    with _PassedOn(locks / _STOPPED) as stop:
        try:
            # Of one run too: with fewer jobs joblib would do it here, where its end would be the study's.
            for outcome in _in_processes(call, stop.until(batch), jobs):
                if outcome != _STOPPED:
                    yield outcome
        except Exception:
            if stop.number is None:
                raise
    if stop.number is not None:
        raise ending(stop.number)


def _in_processes(call: Callable[[Any], Any], batch: Iterable[Any], jobs: int) -> Iterator[Any]:
    """Yield what `call(run)` returns in `jobs` processes, as the runs end."""
    from joblib import Parallel, delayed

    with warnings.catch_warnings():
        # loky replaces workers whose memory has grown, as it does here, and then warns about it.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        order = "generator_unordered"
        pool = Parallel(jobs, backend="loky", return_as=order, pre_dispatch="n_jobs", batch_size=1)
        yield from pool(delayed(call)(run) for run in batch)


def _in_worker(
    work: Callable[..., Outcome], locks: Path, out: Path, directory: str, threads: int, run: Any
) -> Outcome | str:
    """Call `work` in a worker process; return `_STOPPED` where a signal ended its study.

    A signal to the worker alone ends the worker, not the study.
    """
    global _at_work
    for number in (signal.SIGINT, *SIGNALS):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end_run)  # a training has its own, which lets the step end and saves
    try:
        _at_work = True
        if (locks / _STOPPED).exists():
            return _STOPPED
        take_gpu(locks)
        return work(run, out, directory, threads)
    except (KeyboardInterrupt, SystemExit) as error:
        end = time.monotonic() + _WAIT
        while time.monotonic() < end:
            if (locks / _STOPPED).exists():
                return _STOPPED
            time.sleep(0.05)
        raise BrokenProcessPool(f"exit code {getattr(error, 'code', 130)}") from error
    finally:
        _at_work = False


def _end_run(number: int, frame: FrameType | None) -> None:
    """End the run of a worker process; one without a run stays, since loky would end the others with it."""
    if _at_work:
        raise ending(number)


class _PassedOn(AnswersSignals):
    """Passes the first signal on to the worker processes, which save and end; use it as a context.

    A second Ctrl-C ends them at once.
    """

    def __init__(self, mark: Path) -> None:
        self.number: int | None = None
        """The signal that came."""

        self._mark = mark
        mark.unlink(missing_ok=True)

    def until(self, batch: Iterable[Any]) -> Iterator[Any]:
        """Yield the runs that begin: none after a signal."""
        for run in batch:
            if self.number is not None:
                return
            yield run

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if number == signal.SIGINT:
                raise ending(number)
            return
        self.number = number
        self._mark.touch()
        with contextlib.suppress(OSError):  # of a pipe whose reader the same Ctrl-C has ended
            os.write(2, b"\nfineprune: stopping the runs after their step; Ctrl-C to stop at once\n")
        for process in multiprocessing.active_children():
            if process.name.startswith("LokyProcess") and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)


def take_gpu(locks: Path) -> None:
    """Show this process one GPU of several until it ends: one that no other worker uses, or any."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    chosen = names[os.getpid() % count]
    for name in names:
        lock = FileLock(locks / f"gpu-{name.strip()}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _gpu_locks.append(lock)
        chosen = name
        break
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen  # CUDA reads it at its first use, which is later
