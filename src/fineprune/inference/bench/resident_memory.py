"""What a loaded model takes: resident memory and time, each way of loading in a process of its own.

    python -m fineprune.inference.bench.resident_memory < request.json

Nothing heavy is imported at the top, torch least of all: the way without it would be charged for it.
"""

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._messages import one_line
from fineprune.errors import FinepruneError

DENSE = "torch"
_TIMEOUT = 600  # seconds


class Loading(NamedTuple):
    """What one way of loading a model takes, in MB (10^6 bytes) and seconds."""

    way: str
    seconds: float
    """From the folder to a model that can be called; imports are over."""
    loaded: float
    """What the resident memory grew by until then."""
    answered: float
    """And after the first answer: files that are only mapped are read by then. Activations are counted."""
    process: float
    """All of the process, the code of Python and its packages included."""


class Request(NamedTuple):
    """What a child process is asked: to load `source` as `way` says, and to answer `ids`."""

    way: str
    """`DENSE`; "accelerate DTYPE", torch and the engine; "runtime DTYPE", fineprune_runtime alone."""
    source: str
    """A model folder, or a name on the hub for `DENSE` alone."""
    kind: str
    """The model's class in transformers."""
    ids: list[list[int]]
    threads: int


def measure(request: Request) -> Loading:
    """Load a model in a fresh process. Raises `FinepruneError` with what that process died of."""
    if not Path("/proc/self/statm").is_file():
        raise FinepruneError("this system has no /proc/self/statm, by which resident memory is told")
    environment = os.environ | {"OMP_NUM_THREADS": str(request.threads)}
    command = [sys.executable, "-m", "fineprune.inference.bench.resident_memory"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request._asdict()),
            capture_output=True,
            text=True,
            env=environment,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise FinepruneError(f"not done after {_TIMEOUT} s") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise FinepruneError(last[0])
    return Loading(request.way, **json.loads(done.stdout.splitlines()[-1]))


def resident() -> float:
    """MB of memory that this process has at this moment (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def _answer(request: Request) -> dict[str, float]:
    """The child's work."""
    load, run = (_runtime if request.way.startswith("runtime") else _torch)(request)
    gc.collect()
    before = resident()
    begin = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - begin
    gc.collect()
    loaded = resident()
    run(model)
    answered = resident()
    return {
        "seconds": seconds,
        "loaded": loaded - before,
        "answered": answered - before,
        "process": answered,
    }


def _torch(request: Request) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """How to load and how to run, all imports and torch's own buffers behind it."""
    import torch
    import transformers

    from fineprune.checkpoint.loading import load as load_model
    from fineprune.inference.accelerate import accelerate

    dtype: Any = request.way.removeprefix("accelerate ")
    kind: Any = getattr(transformers, request.kind)
    torch.set_num_threads(request.threads)
    torch.nn.Linear(64, 64)(torch.ones(64, 64))
    ids = torch.tensor(request.ids)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def load() -> Any:
        if request.way == DENSE:
            if Path(request.source).is_dir():
                return load_model(request.source)
            return kind.from_pretrained(request.source)
        packed = load_model(request.source, packed=True)
        return accelerate(packed, dtype, request.threads)

    def run(model: Any) -> None:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))

    return load, run


def _runtime(request: Request) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    from fineprune_runtime import predictor

    dtype = request.way.removeprefix("runtime ")

    def run(model: Any) -> None:
        model.network(request.ids)

    return lambda: predictor.load(request.source, dtype, request.threads), run


def main() -> None:
    """Answer the request on standard input; an error is one line, and exit code 1."""
    warnings.simplefilter("ignore")
    asked = Request(**json.load(sys.stdin))
    try:
        print(json.dumps(_answer(asked)))
    except Exception as error:  # whatever a way of loading makes of a model: the parent lists it
        sys.exit(one_line(error))


if __name__ == "__main__":
    main()
