"""Check the small files of a model folder before transformers opens them, and list them in the manifest."""

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fineprune._engine_errors import engine_errors
from fineprune._messages import one_line
from fineprune.errors import FinepruneError
from fineprune_runtime import manifest, reading

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# fineprune.json and README.md are for people, and may be edited.
_ABOUT = ("fineprune.json", "README.md")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file that nobody has vouched for.

    Raises:
        FileNotFoundError: there is no such file.
        FinepruneError: it is no regular file, too large, or not JSON.
    """
    with engine_errors():
        return reading.read_json(path)


def check_files(folder: Path, tokenizer: bool = False) -> None:
    """Raise unless the files of a model folder can be opened safely, and are those that were saved.

    Args:
        folder: the model folder; one that does not exist is left to the caller.
        tokenizer: compare the tokenizer's files, too, with the checksums of a compact model.

    Raises:
        FinepruneError: a file is a pipe or a device, an index leads out of the folder, or a file that the
            manifest lists was changed.
    """
    if not os.path.isdir(folder):
        return
    with engine_errors():
        for path in folder.iterdir():
            if path.exists() and not path.is_dir():
                reading.check_regular(path)
        for name in _INDEXES:
            if (folder / name).is_file():
                _check_index(folder / name)
    check_listed(folder, _manifest_of(folder), tokenizer)


def check_listed(folder: Path, content: dict[str, Any], tokenizer: bool = False) -> None:
    """Compare the files beside the weights with a manifest: all with `tokenizer`, else config.json alone.

    Raises:
        FinepruneError: one of them is missing, or was changed.
    """
    listed = content.get("files", {})
    if isinstance(listed, dict) and not tokenizer:
        listed = {name: crc for name, crc in listed.items() if name == "config.json"}
    with engine_errors():
        manifest.verify_files(folder, {"files": listed})


def checksums(folder: Path) -> dict[str, int]:
    """Return the CRC-32 of each file beside the weights, by its path in the model folder."""
    return {
        path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".safetensors" and path.name not in _ABOUT
    }


def write_checksums(folder: Path) -> None:
    """Add the list of the files beside the weights to the manifest of each weight file of a folder.

    transformers writes config.json between asking for the manifest and writing it; so the header is written
    anew when all is there.
    """
    files = checksums(folder)
    for path in folder.glob("*.safetensors"):
        beside = path.with_suffix(".tmp")
        with path.open("rb") as old, beside.open("wb") as new:
            header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
            metadata = header["__metadata__"]
            metadata[manifest.KEY] = json.dumps(json.loads(metadata[manifest.KEY]) | {"files": files})
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            text += b" " * (-len(text) % 8)  # safetensors keeps the tensors aligned
            new.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(old, new)
        shutil.copymode(path, beside)
        os.replace(beside, path)


@contextmanager
def explained(before: str) -> Iterator[None]:
    """Turn any error of transformers, tokenizers or torch while they open files into one line."""
    try:
        yield
    except FinepruneError:
        raise
    except Exception as error:  # OSError, ValueError, SafetensorError, … by file and by version
        raise FinepruneError(f"{before}: {one_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a panic of tokenizers' Rust code becomes
            raise
        raise FinepruneError(f"{before}: {one_line(error)}") from error


def _check_index(path: Path) -> None:
    content = reading.read_json(path)
    named = content.get("weight_map") if isinstance(content, dict) else None
    names = list(named.values()) if isinstance(named, dict) else []
    # isprintable: half a surrogate pair is no file name
    if not names or not all(
        isinstance(name, str) and Path(name).name == name and name.isprintable() for name in names
    ):
        raise FinepruneError(f"{path}: weight_map does not name files of the folder; fetch the model again")


def _manifest_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a compact model or a delta; {} without one."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                return dict(json.loads((file.metadata() or {})[manifest.KEY]))
        except (OSError, SafetensorError, ValueError, RecursionError, KeyError, TypeError):
            continue  # no manifest, or a damaged file: whoever opens the weights says so
    return {}
