"""Files that are there whole or not at all."""

import contextlib
import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fineprune.errors import FinepruneError


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file takes its place when the block ends well.

    A kill leaves the old content or the new one. After an error nothing is left beside it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file such that a kill leaves the old content or the new one."""
    with staged_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole; values that JSON has no word for (nan, inf) are an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def alone(lock: Path, refusal: str) -> Iterator[None]:
    """Hold the file `lock`, made with its folder; the lock is the system's, so that it ends with the process.

    Raises `FinepruneError`: `refusal` where another process holds it, another where it cannot be made.
    """
    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout as error:
        raise FinepruneError(refusal) from error
    except OSError as error:
        raise FinepruneError(
            f"{lock.parent}: cannot be written to ({error.strerror}); name another folder with --out"
        ) from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A path beside `folder` to write a folder to, which takes its place when the block ends well."""
    place = folder.resolve()  # where a link leads
    staging = place.with_name(f".{place.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
        replace_folder(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Move the finished folder `new` to `place`, whatever was there before.

    A kill leaves the old folder at `place` or the new one. Where the file system cannot exchange two
    folders in one step, the old one may be left beside it, as `.NAME.old`. A link stays a link: the
    folder that it leads to is replaced.
    """
    place = place.resolve()
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        if _exchange(new, place):
            shutil.rmtree(new)
            return
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step (Linux's renameat2); False where that is not to be had."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):  # not on this file system, or not in this kernel
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
