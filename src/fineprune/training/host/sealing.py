"""The seal of a checkpoint, by which it is known to be whole or broken.

A checkpoint is what the host writes, the file of the pruning, and a manifest: the pruner's plain values, and
the size and checksum of every file. It is written beside its place and renamed, so that a folder of that name
was finished; the manifest shows later damage.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fineprune._files import WriteError, refused_write, room_at, write_json
from fineprune._messages import one_line
from fineprune.errors import FinepruneError

MANIFEST = "fineprune_checkpoint.json"
FORMAT = 2
"""1, without the number in the manifest, had scores and masks among the weights of the model."""

_PREFIX = "checkpoint-"


def seal(folder: Path, state: dict[str, Any] | None, run: dict[str, Any] | None = None) -> None:
    """Write the manifest of a finished checkpoint folder.

    Args:
        folder: the checkpoint.
        state: the pruner's plain values; None if dense.
        run: how it was made.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in paths}
    content = {"format": FORMAT, "pruner": state, "files": files, "run": run or {}}
    write_json(folder / MANIFEST, content | {"crc32": _checksum(content)})


def verify(folder: Path) -> dict[str, Any] | None:
    """Return the pruner's values of a checkpoint.

    Raises:
        FinepruneError: A file does not match the manifest, or the checkpoint has another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, state = manifest["files"], manifest["pruner"]
        if manifest.pop("crc32") != _checksum(manifest):
            raise _broken(folder, f"{MANIFEST} does not match its checksum")
    except FileNotFoundError as error:
        raise FinepruneError(
            f"{folder}: no {MANIFEST} in it, so it is no checkpoint of a PruningTrainer; name another"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise _broken(folder, f"{MANIFEST} cannot be read: {error}") from error
    version = manifest.get("format", 1)
    if version != FORMAT:
        raise FinepruneError(
            f"{folder}: a checkpoint of format {version}, of {'an earlier' if version == 1 else 'another'} "
            f"fineprune; this one continues format {FORMAT}. Finish the run with the version that began it, "
            "or start it again in another folder"
        )
    if not isinstance(files, dict):
        raise _broken(folder, f"{MANIFEST} lists no files")
    for name, expected in files.items():
        try:
            actual = _fingerprint(folder / name)
            expected = {"size": int(expected["size"]), "crc32": int(expected["crc32"])}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise _broken(folder, f"{name} cannot be read") from error
        if actual["size"] != expected["size"]:
            raise _broken(folder, f"{name} has {actual['size']:,} bytes of {expected['size']:,}")
        if actual != expected:
            raise _broken(folder, f"{name} does not match its checksum")
    return state  # type: ignore[no-any-return]


def run_of(folder: Path) -> dict[str, Any]:
    """Return the `run` of a checkpoint that verifies."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest.get("run") or {}


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint in `folder` that verifies, and why newer ones do not."""
    numbered = [
        (int(path.name.removeprefix(_PREFIX)), path)
        for path in folder.glob(f"{_PREFIX}*")
        if path.name.removeprefix(_PREFIX).isdigit()
    ]
    complaints = []
    for _, path in sorted(numbered, reverse=True):
        try:
            verify(path)
        except FinepruneError as error:
            complaints.append(str(error))
        else:
            return path, complaints
    return None, complaints


@contextlib.contextmanager
def writing(place: Path, folder: Path) -> Iterator[None]:
    """Raise one line where the block cannot write `place`, with the checkpoint of `folder` to resume from.

    torch and safetensors have errors of their own for a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, WriteError) as error:
        if isinstance(error, RuntimeError) and refused_write(error) is None:
            raise
        newest, _ = newest_whole(folder)
        reason = error.reason if isinstance(error, WriteError) else one_line(error)
        resume = "the run has no checkpoint yet" if newest is None else f"the newest checkpoint is {newest}"
        raise FinepruneError(
            f"{place}: cannot be written ({reason}); make room there{room_at(folder)} or make it writable, "
            f"then resume: {resume}"
        ) from error


def _fingerprint(path: Path) -> dict[str, int]:
    size, checksum = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return {"size": size, "crc32": checksum}


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _broken(folder: Path, why: str) -> FinepruneError:
    return FinepruneError(f"{folder}: broken checkpoint ({why}); delete it and resume from an earlier one")
