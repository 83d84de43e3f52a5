"""Read small files that nobody has vouched for: never from a device or a pipe, never more than a limit."""

import json
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fineprune_runtime.errors import EngineError

JSON_LIMIT = 256 * 2**20
"""The largest JSON file that is read, in bytes; tokenizer.json of a large vocabulary takes some 30 MB."""

_DEPTH = 100
_VALUES = 10_000_000  # ten times the entries of the largest tokenizer.json
_LARGEST = int(sys.float_info.max)


def check_regular(path: str | Path, limit: int | None = None) -> int:
    """Return the size of a file in bytes, without opening it.

    Reading a named pipe would wait forever, and reading a device such as /dev/zero would fill the memory.

    Args:
        path: the file; a link is followed.
        limit: the largest size that is allowed, in bytes; None: any.

    Raises:
        FileNotFoundError: there is no such file, or its link leads nowhere.
        EngineError: it is not a regular file, or larger than `limit`, or no file can have its name.
    """
    try:
        status = Path(path).stat()
    except ValueError as error:  # a null byte, in a name that another file gives
        raise EngineError(f"{str(path)!r}: cannot be read ({error})") from error
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
        EngineError: it cannot be read, is not a regular file, larger than `limit` bytes, or not JSON.
    """
    check_regular(path, limit)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number too long
        raise EngineError(f"{path}: cannot be read, it is damaged ({error})") from error
    check_plain(value, path)
    return value


def parse_json(text: str, where: object) -> Any:
    """Return the value of a JSON text; `where` names it in messages.

    Raises:
        EngineError: it is not JSON, or `check_plain` refuses the value.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{where}: cannot be read, it is damaged ({error})") from error
    check_plain(value, where)
    return value


def check_plain(value: Any, where: object, limit: int = _VALUES) -> None:
    """Check that a value read from JSON or YAML can be walked, printed and computed with.

    A few lines of YAML aliases can stand for billions of values, and a whole number can be too large for any
    float.

    Args:
        value: mappings, lists and scalars.
        where: the file, for messages.
        limit: the number of values that it may hold, aliases written out.

    Raises:
        EngineError: it holds more, is nested too deep or in itself, or has a number too large.
    """
    sizes: dict[int, int] = {}

    def size(entry: Any, depth: int) -> int:
        if isinstance(entry, int) and abs(entry) > _LARGEST:
            raise EngineError(
                f"{where}: holds a whole number of {entry.bit_length()} bits, more than any setting has"
            )
        if not isinstance(entry, Mapping | list):
            return 1
        if depth > _DEPTH:
            raise EngineError(f"{where}: is nested more than {_DEPTH} levels deep")
        if id(entry) not in sizes:
            inner = [*entry.values(), *entry] if isinstance(entry, Mapping) else entry
            total = 1
            for part in inner:
                total += size(part, depth + 1)
                if total > limit:
                    raise EngineError(
                        f"{where}: holds more than {limit:,} values, with aliases (*) written out"
                    )
            sizes[id(entry)] = total
        return sizes[id(entry)]

    size(value, 0)
