"""Files that are there whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file such that a kill leaves the old content or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole; values that JSON has no word for (nan, inf) are an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def replace_folder(new: Path, place: Path) -> None:
    """Move the finished folder `new` to `place`, whatever was there before."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)
