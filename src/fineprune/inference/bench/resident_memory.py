"""Measure the resident memory and the time of loading a model, each way in a separate process.

    python -m fineprune.inference.bench.resident_memory < request.json

Heavy packages, torch above all, are not imported at the top: the way without torch would be charged for it.
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
    """The cost of one way of loading a model, in MB (10^6 bytes) and seconds."""

    way: str
    seconds: float
    """From the folder to a model that can be called; imports are over."""
    loaded: float
    """Growth of the resident memory until then."""
    answered: float
    """Growth until after the first answer, by when mapped files were read. Activations are counted."""
    process: float
    """Memory of the entire process, including the code of Python and its packages."""


class Request(NamedTuple):
    """The request to a child process: load `source` in the given `way`, and run it on `ids`."""

    way: str
    """`DENSE`; "accelerate DTYPE", torch and the engine; "runtime DTYPE", only fineprune_runtime; of an
    exported graph "onnxruntime", "OpenVINO f32" and "OpenVINO bf16"."""
    source: str
    """A model folder, the file of a graph, or, only for `DENSE`, a name on the hub."""
    kind: str
    """The model's class in transformers."""
    ids: list[list[int]]
    threads: int


def measure(request: Request) -> Loading:
    """Measure loading a model in a fresh process.

    Raises:
        FinepruneError: with the last line of that process's errors, if it failed.
    """
    if not Path("/proc/self/statm").is_file():
        raise FinepruneError("this system has no /proc/self/statm, from which resident memory is read")
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
    """Return this process's current resident memory in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def _answer(request: Request) -> dict[str, float]:
    """Load and run the model in the child process, and return the measurements."""
    ways = {"runtime": _runtime, "onnxruntime": _graph, "OpenVINO": _graph}
    load, run = ways.get(request.way.split()[0], _torch)(request)
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
    """Return functions to load and to run, with all imports and torch's buffers already in memory."""
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
    from fineprune_runtime import loading

    dtype = request.way.removeprefix("runtime ")

    def run(model: Any) -> None:
        model.network(request.ids)

    return lambda: loading.load(request.source, dtype, request.threads), run


def _graph(request: Request) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    import numpy as np

    from fineprune.inference.bench.graphs import onnx_call, openvino_call, openvino_core

    ids = np.array(request.ids, dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    name, _, precision = request.way.partition(" ")
    core = openvino_core() if name == "OpenVINO" else None
    if core is None:
        import onnxruntime  # noqa: F401 - imports are over before the memory is first read

    def load() -> Any:
        if core is None:
            return onnx_call(Path(request.source), request.threads)
        return openvino_call(core, request.source, precision, request.threads)

    return load, lambda call: call(inputs)


def main() -> None:
    """Answer the request on standard input; an error is one line, with exit code 1."""
    warnings.simplefilter("ignore")
    asked = Request(**json.load(sys.stdin))
    try:
        print(json.dumps(_answer(asked)))
    except Exception as error:  # anything that loading raises: the parent lists it
        sys.exit(one_line(error))


if __name__ == "__main__":
    main()
