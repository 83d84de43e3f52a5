"""Write files and folders atomically: a reader finds the old content or the new one, never a part."""

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
    """Yield a path beside `path` to write to; the file replaces `path` when the block ends without an error.

    A kill leaves the old content or the new one. After an error the temporary file is removed.
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
    """Write a text file atomically, as UTF-8."""
    with staged_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; numbers that JSON cannot express (nan, inf) are an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def exclusive(lock: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `lock`, creating its folder; the system releases it when the process ends.

    Raises:
        FinepruneError: `refusal` if another process holds it; another message if it cannot be created.
    """
    file_lock = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file_lock.acquire(timeout=0)
    except Timeout as error:
        raise FinepruneError(refusal) from error
    except OSError as error:
        raise FinepruneError(
            f"{lock.parent}: cannot be written to ({error.strerror}); name another folder with --out"
        ) from error
    try:
        yield
    finally:
        file_lock.release()


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a path beside `folder` to create a folder at; it replaces `folder` if no error ends the block."""
    place = folder.resolve()  # the target of a link
    staging = place.with_name(f".{place.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
        replace_folder(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Move the finished folder `new` to `place`, replacing any existing one.

    A kill leaves the old folder at `place` or the new one. Where the file system cannot exchange two
    folders in one step, the old one may remain beside it, as `.NAME.old`. A link stays a link: its
    target is replaced.
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
    """Swap two paths in one step (Linux's renameat2); return False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    current, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(current, os.fsencode(one), current, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):  # not supported by the file system, or by the kernel
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
