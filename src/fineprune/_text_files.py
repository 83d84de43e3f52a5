"""Read text files; errors name the file and the line."""

import sys
from pathlib import Path

from fineprune.errors import FinepruneError


def find_file(path: str | Path) -> Path:
    """Return the path of an existing file.

    Raises:
        FinepruneError: no such file, or a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise FinepruneError(f"{path}: is a folder; name a file in it")
    if not path.exists():
        raise FinepruneError(f"{path}: no such file (looked in {path.absolute().parent})")
    return path


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, without its byte order mark; "-" is standard input.

    Raises:
        FinepruneError: the file cannot be read, or is not UTF-8, with the line of the first such byte.
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except OSError as error:
        raise FinepruneError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        bad = f"byte 0x{raw[error.start]:02x}"
        raise FinepruneError(
            f"{path}, line {line}: {bad} is not UTF-8 text; save the file as UTF-8"
        ) from error


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 file that are not blank; "-" is standard input.

    Raises:
        FinepruneError: as `read_text`, and where there is no such line.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise FinepruneError(f"{path}: no text in it; one a line is expected")
    return lines
