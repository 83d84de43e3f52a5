"""Run a study on a Ray cluster, each run as a task; all machines need one shared file system."""

import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from fineprune._extras import require
from fineprune._messages import one_line
from fineprune.errors import FinepruneError

Outcome = TypeVar("Outcome")


def import_ray() -> ModuleType:
    """Return the module `ray`; raise `FinepruneError` where it cannot be imported."""
    require("ray", "--ray")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise FinepruneError(
            f"--ray: Ray cannot be imported ({one_line(error)}); install it again"
        ) from error


@contextmanager
def connected(ray: ModuleType, say: Callable[[str], None]) -> Iterator[None]:
    """Join the Ray cluster of RAY_ADDRESS, or start one on this machine that ends with the block.

    A connection that the caller has made is used, and stays open.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use over the network
    address = os.environ.get("RAY_ADDRESS") or "local"
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if ":" in address:  # Ray itself tries for many minutes
            host, _, port = address.rpartition("/")[2].rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, and does not restore this one
    except Exception as error:
        raise FinepruneError(f"RAY_ADDRESS={address}: no cluster to run on ({one_line(error)})") from error
    try:
        nodes, cores = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources().get("CPU", 0)
        say(f"Ray: {nodes} machine{'s' * (nodes != 1)}, {cores:.0f} cores")
        yield
    finally:
        ray.shutdown()


def outcomes(
    ray: ModuleType, work: Callable[..., Outcome], batch: list[Any], out: Path, jobs: int | None
) -> Iterator[Outcome]:
    """Yield what `work(run, out, directory, 1)` returns for each run, as the runs end.

    A task takes one core, and one GPU where the cluster has GPUs. joblib's Ray backend is not used: it deals
    the runs out beforehand, so that short runs wait behind long ones, reports none before all have ended, and
    ends them all where one loses its worker. Here Ray starts a lost task again, once. Where that is lost as
    well, the other runs still end, and then this raises.

    Raises:
        BrokenProcessPool: where the worker of a run was lost twice.
        Exception: the cause, where `work` could not start on a worker.
    """
    gpus = 1 if ray.cluster_resources().get("GPU") else 0  # a task that asks for none sees none
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=int(len(batch) > 1))(work)
    tasks = (task.options(name=run.name).remote(run, out, os.getcwd(), 1) for run in batch)
    running, broken = list(islice(tasks, jobs)), None
    try:
        while running:
            (ended,), running = ray.wait(running)
            running += islice(tasks, 1)
            try:
                outcome = ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                broken = error.cause  # `work` did not begin: its package or its directory is missing there
            except ray.exceptions.RayError as error:
                broken = BrokenProcessPool(str(error))
            else:
                yield outcome
    finally:
        for unfinished in running:
            ray.cancel(unfinished, force=True)
    if broken:
        raise broken
