"""Write files and folders atomically: a reader finds the old content or the new one, never a part or a mix.

Whoever writes has a place of its own beside the target, so writers of one target cannot meet in it: each
publishes a whole, and the last one stays.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from fineprune._messages import one_line
from fineprune.errors import FinepruneError

if os.name == "posix":
    import fcntl

_ABANDONED = 3600.0  # seconds after which a temporary file belongs to nobody: writing one takes seconds
_REFUSALS = {  # by the system, of a write
    code: os.strerror(code)
    for code in (
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
        errno.EISDIR, errno.ENOTDIR,
    )
}  # fmt: skip
_RUST = re.compile(r"(?:os error|code:) (\d+)")  # safetensors and tokenizers
_UNNUMBERED = (  # in what torch.save and numpy's tofile say of a full disk
    "inline_container", "PytorchStreamWriter", "iostream", "problem writing element", "requested and",
)  # fmt: skip


class WriteError(FinepruneError):
    """A file or folder that cannot be written, with the `reason`: a full disk, missing rights."""

    def __init__(self, place: Path, reason: str) -> None:
        super().__init__(
            f"{place}: cannot be written ({reason}); make room there{room_at(place)}, or choose another place"
        )
        self.reason = reason


def room_at(place: Path) -> str:
    """Return " (N MB are free)" about the disk of a path, or nothing where that cannot be found out."""
    for folder in (place, *place.absolute().parents):
        with contextlib.suppress(OSError):
            return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB are free)"
    return ""


def refused_write(error: BaseException) -> str | None:
    """Return why the system refused a write, if that is what the error says.

    Errors of torch, numpy and Rust have no number.
    """
    if isinstance(error, OSError) and error.errno:
        return _REFUSALS.get(error.errno)
    if isinstance(error, RuntimeError | OSError) and any(part in str(error) for part in _UNNUMBERED):
        return one_line(error)
    found = _RUST.search(str(error))
    return _REFUSALS.get(int(found[1])) if found else None


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Raise `WriteError` where the block cannot write `place`, and one line where it may not read a file."""
    try:
        yield
    except FinepruneError:
        raise
    except Exception as error:
        reason = refused_write(error)
        if reason is None:
            raise
        if (source := _unreadable(error, place)) is not None:
            raise FinepruneError(f"{source}: cannot be read ({reason})") from error
        raise WriteError(place, reason) from error


def _unreadable(error: Exception, place: Path) -> Path | None:
    """Return the file that an error refuses to read; None if it is about `place` or its temporary files."""
    name = error.filename if isinstance(error, PermissionError) else None
    if not isinstance(name, str | bytes):
        return None
    path, folder = Path(os.path.abspath(os.fsdecode(name))), Path(os.path.abspath(place)).parent
    if folder.is_relative_to(path):  # it cannot be made, or nothing in it
        return None
    first = path.relative_to(folder).parts[0] if path.is_relative_to(folder) else ""
    return None if first == place.name or first.startswith(f".{place.name}.") else path


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file replaces `path` when the block ends without an error.

    A kill leaves the old content or the new one. After an error the temporary file is removed.

    Raises:
        WriteError: the disk is full, or the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _writing(path):
            beside.touch(exist_ok=False)
            now, mode = beside.stat().st_mtime, beside.stat().st_mode
            for other in path.parent.glob(f".{_escaped(path.name)}.*.tmp"):
                with contextlib.suppress(OSError):
                    if now - other.stat().st_mtime > _ABANDONED:
                        other.unlink()
            yield beside
            beside.chmod(mode)  # safetensors lets nobody else read what it writes
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):  # a read-only file system refuses it: that write has its own error
            beside.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        WriteError: the place cannot be written, or holds a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error.strerror or str(error)) from error


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
    """Yield a path to create a folder at; it replaces `folder` if no error ends the block.

    What a killed process left of such a block is removed by the next one.

    Raises:
        WriteError: the disk is full, or the place cannot be written.
    """
    place = folder.resolve()  # the target of a link
    with _writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    with _writing(place), _workplace(place) as workplace:
        yield workplace / place.name
        replace_folder(workplace / place.name, place)


@contextlib.contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; its files are moved into `folder` if no error ends the block.

    Files of `folder` with other names stay. After an error it is as it was.

    Raises:
        WriteError: the disk is full, or the place cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with _writing(folder):
            workplace = stack.enter_context(_workplace(folder))
        yield workplace
        try:
            for path in sorted(workplace.iterdir()):
                folder.mkdir(exist_ok=True)
                os.replace(path, folder / path.name)
        except OSError as error:  # also of a file in the folder's place
            raise WriteError(folder, error.strerror or str(error)) from error


@contextlib.contextmanager
def _workplace(place: Path) -> Iterator[Path]:
    """Yield a new folder beside `place`, locked while the block runs, and remove those of dead processes."""
    for other in place.parent.glob(f".{_escaped(place.name)}.*.writing"):
        with _lock(other) as state:
            if state == "ours":
                shutil.rmtree(other, ignore_errors=True)
    while True:
        workplace = place.with_name(f".{place.name}.{secrets.token_hex(4)}.writing")
        workplace.mkdir()
        try:
            with _lock(workplace) as state:
                if state == "theirs" or not workplace.exists():  # taken for a dead one's before it was locked
                    continue
                yield workplace
                return
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[Literal["ours", "theirs", "none"]]:
    """Lock a folder while the block runs, unless another process has; the system unlocks it at a kill.

    Yields who has the lock: nobody can where the system or the file system has none, or the folder is gone.
    """
    number = None
    state: Literal["ours", "theirs", "none"] = "none"
    if os.name == "posix":
        try:
            number = os.open(folder, os.O_RDONLY)
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state = "ours"
        except BlockingIOError:
            state = "theirs"
        except OSError:
            state = "none"
    try:
        yield state
    finally:
        if number is not None:
            os.close(number)


def _escaped(name: str) -> str:
    """Return a pattern for `glob` that matches the name itself."""
    return re.sub(r"([*?[])", r"[\1]", name)


def replace_folder(new: Path, place: Path) -> None:
    """Move the finished folder `new` to `place`, replacing any existing one.

    A kill leaves the old folder at `place` or the new one. Where the file system cannot exchange two
    folders in one step, the old one may remain beside it, as `.NAME.*.old`. A link stays a link: its
    target is replaced. Everybody may read the files whom the umask allows it.
    """
    place = place.resolve()
    if new.is_dir():
        follow_umask(new)
    while True:
        try:
            if place.exists():
                _swap(new, place)
            else:
                os.replace(new, place)
            break
        except OSError as error:
            # Another writer published between the look and the move.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not new.exists():
                raise
    for old in place.parent.glob(f".{_escaped(place.name)}.*.old"):
        shutil.rmtree(old, ignore_errors=True)


def _swap(new: Path, place: Path) -> None:
    """Put `new` in the place of an existing folder, and remove that."""
    if _exchange(new, place):
        shutil.rmtree(new)
        return
    old = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
    with contextlib.suppress(FileNotFoundError):  # another writer has moved it away
        os.replace(place, old)
    os.replace(new, place)


def follow_umask(folder: Path) -> None:
    """Give the files in a folder the rights of new files; safetensors lets nobody else read its own."""
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


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
