"""Start processes with torch and transformers imported, and without fineprune, in a moment each."""

import faulthandler
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

# All children are forked from one server, which imports these when the first is started.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "datasets",
        "sklearn.metrics",
        "transformers.trainer",
        "transformers.models.auto.modeling_auto",
        "transformers.models.bert.modeling_bert",
        "transformers.models.bert.tokenization_bert",
    ]
)


def start(
    code: str | Path, *arguments: object, out: Path, err: Path, environment: dict[str, str] | None = None
) -> multiprocessing.Process:
    """Start a process on a script, or on code, as `python` does; `out` and `err` are the files it writes."""
    given = (code, [*map(str, arguments)], out, err, dict(os.environ) | (environment or {}))
    process = _CONTEXT.Process(target=_main, args=given)
    process.start()
    return process


def python(code: str | Path, *arguments: object, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a script, or code, to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(code, *arguments, out=out, err=err)
        try:
            process.join(seconds)
        finally:
            process.kill()
            process.join()
        return subprocess.CompletedProcess([], process.exitcode, out.read_text(), err.read_text())


def _main(code: str | Path, arguments: list[str], out: Path, err: Path, environment: dict[str, str]) -> None:
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    faulthandler.enable()  # a crash says where, in the file of what went wrong
    assert "fineprune" not in sys.modules
    if isinstance(code, Path):
        sys.path.insert(0, str(code.parent))
        sys.argv = [str(code), *arguments]
        runpy.run_path(str(code), run_name="__main__")
    else:
        sys.argv = ["-c", *arguments]
        exec(code, {"__name__": "__main__"})
