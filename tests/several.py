"""Run a worker script as several processes, and read what its checks came to."""

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS = 280


def launch(script: Path, folder: Path, ranks: int, *arguments: str) -> dict[str, list[str | None]]:
    """Of each check, by name: what failed on each rank, or None."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (folder / f"{rank}.log").open("w") as log:
            command = [sys.executable, str(script), str(folder), *arguments]
            environment = os.environ | shared | own
            started.append(subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log))
    try:
        for process in started:
            process.wait(SECONDS)
    finally:
        for process in started:
            process.kill()
            process.wait()
    outcomes: dict[str, list[str | None]] = {}
    for rank in range(ranks):
        path = folder / f"{rank}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for name, failure in map(json.loads, lines):
            outcomes.setdefault(name, []).append(failure)
    for rank, process in enumerate(started):
        if process.returncode:
            tail = (folder / f"{rank}.log").read_text()[-3000:]
            outcomes["end"] = [f"process {rank} ended with {process.returncode}:\n{tail}"]
    return outcomes


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
