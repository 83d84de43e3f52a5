"""Run a study on this machine; several runs at the same time each have a process of joblib's loky."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from fineprune_runtime.processors import usable_processors

Outcome = TypeVar("Outcome")
_gpu_locks: list[FileLock] = []  # of a worker process: the lock of the GPU that it uses


def outcomes(
    work: Callable[..., Outcome], batch: Iterable[Any], out: Path, locks: Path, jobs: int
) -> Iterator[Outcome]:
    """Yield what `work(run, out, directory, threads)` returns for each run, as the runs end.

    With one job this process does the work. Else each of `jobs` processes has its share of the cores, and a
    GPU of its own where there are several; `locks` is the folder for their lock files.

    Raises:
        BrokenProcessPool: where a process ended in the middle of a run.
    """
    from joblib import Parallel, delayed

    threads = None if jobs == 1 else max(1, usable_processors() // jobs)
    call = work if jobs == 1 else partial(_in_worker, work, locks)
    with warnings.catch_warnings():
        # loky replaces workers whose memory has grown, as it does here, and then warns about it.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        order = "generator_unordered"
        pool = Parallel(jobs, backend="loky", return_as=order, pre_dispatch="n_jobs", batch_size=1)
        yield from pool(delayed(call)(run, out, os.getcwd(), threads) for run in batch)


def _in_worker(work: Callable[..., Outcome], locks: Path, *arguments: Any) -> Outcome:
    """Call `work` in a worker process; SIGTERM there ends the worker, not the study."""
    try:
        take_gpu(locks)
        return work(*arguments)
    except SystemExit as error:
        raise BrokenProcessPool(f"exit code {error.code}") from error


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
