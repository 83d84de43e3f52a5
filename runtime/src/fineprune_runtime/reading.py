"""Read small files that nobody has vouched for: never from a device or a pipe, never more than a limit."""

import json
import stat
from pathlib import Path
from typing import Any

from fineprune_runtime.errors import EngineError

JSON_LIMIT = 256 * 2**20
"""The largest JSON file that is read, in bytes; tokenizer.json of a large vocabulary takes some 30 MB."""


def check_regular(path: str | Path, limit: int | None = None) -> int:
    """Return the size of a file in bytes, without opening it.

    Reading a named pipe would wait forever, and reading a device such as /dev/zero would fill the memory.

    Args:
        path: the file; a link is followed.
        limit: the largest size that is allowed, in bytes; None: any.

    Raises:
        FileNotFoundError: there is no such file, or its link leads nowhere.
        EngineError: it is not a regular file, or larger than `limit`.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise EngineError(
            f"{path}: is not a regular file (a folder, a pipe or a device); copy the file itself"
        )
    if limit is not None and status.st_size > limit:
        raise EngineError(f"{path}: holds {status.st_size:,} bytes, the most that is read is {limit:,}")
    return status.st_size


def read_json(path: str | Path, limit: int = JSON_LIMIT) -> Any:
    """Return the value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        EngineError: it is not a regular file, larger than `limit` bytes, or not JSON.
    """
    check_regular(path, limit)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number too long
        raise EngineError(f"{path}: cannot be read, it is damaged ({error})") from error
