"""Run a worker script as several processes, and read what its checks came to."""

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from forked import start

SECONDS = 280


def launch(script: Path, folder: Path, ranks: int, *arguments: str) -> dict[str, list[str | None]]:
    """Of each check, by name: what failed on each rank, or None."""
    codes = run_ranks(script, folder, ranks, folder, *arguments)
    outcomes: dict[str, list[str | None]] = {}
    for rank in range(ranks):
        path = folder / f"{rank}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for name, failure in map(json.loads, lines):
            outcomes.setdefault(name, []).append(failure)
    ends = [_end(code, folder / f"{rank}.log") for rank, code in enumerate(codes)]
    return {"end": ends} | outcomes if any(ends) else outcomes  # why the others failed comes first


def _end(code: int | None, log: Path) -> str | None:
    """Return how a process ended, with the end of what it wrote, unless it ended well."""
    if not code:
        return None
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    lines = [line for line in log.read_text().splitlines() if not line.startswith("Extension modules:")]
    return "\n".join([f"process {log.stem} {how}:", *lines[-60:]])


def run_ranks(script: Path, folder: Path, ranks: int, *arguments: object) -> list[int | None]:
    """Run the script as so many ranks to their end; returns their exit codes. `folder` gets a log of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        log = folder / f"{rank}.log"
        started.append(start(script, *arguments, out=log, err=log, environment=shared | own))
    until = time.monotonic() + SECONDS
    try:
        for process in started:
            process.join(max(0, until - time.monotonic()))
    finally:
        for rank, process in enumerate(started):
            if process.is_alive():
                with (folder / f"{rank}.log").open("a") as log:
                    log.write(f"not at its end after {SECONDS} s\n")
            process.kill()
            process.join()
    return [process.exitcode for process in started]


def report(checks: Iterable[tuple[str, Callable[[], object]]], folder: Path) -> None:
    """Run the checks of this process, and write a line for each."""
    with (folder / f"{os.environ['RANK']}.jsonl").open("w") as file:
        for name, check in checks:
            failure = None
            try:
                check()
            except Exception:
                failure = traceback.format_exc()
            file.write(json.dumps([name, failure]) + "\n")
            file.flush()
