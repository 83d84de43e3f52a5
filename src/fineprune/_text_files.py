"""Read text files; errors name the file and the line.

A line ends at a line feed, or a carriage return and a line feed; every other character, such as U+2028 or
U+0085, is part of the text. `str.splitlines` knows eight more ends, so one text would become several.
"""

import os
import sys
from pathlib import Path

from fineprune._engine_errors import engine_errors
from fineprune.errors import FinepruneError
from fineprune_runtime.reading import check_regular

# The first bytes of what is often given in place of UTF-8 text, and what to do about it.
_FORMS = (
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8 (in Excel: CSV UTF-8)"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8 (in Excel: CSV UTF-8)"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook; save the text itself as UTF-8"),
)


def find_file(path: str | Path) -> Path:
    """Return the path of an existing file.

    Raises:
        FinepruneError: no such file, or a folder, a pipe or a device.
    """
    path = Path(path).expanduser()
    if os.path.isdir(path):
        raise FinepruneError(f"{path}: is a folder; name a file in it")
    if not os.path.exists(path):  # unlike Path.exists, False for a name that is too long
        raise FinepruneError(f"{path}: no such file (looked in {path.absolute().parent})")
    with engine_errors():
        check_regular(path)
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
    for start, form in _FORMS:
        if raw.startswith(start):
            raise FinepruneError(f"{path}: is {form}")
    if b"\0" in raw[:2]:  # UTF-16 without its mark
        raise FinepruneError(f"{path}: begins with a NUL character; perhaps it is UTF-16, save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        bad = f"byte 0x{raw[error.start]:02x}"
        raise FinepruneError(
            f"{path}, line {line}: {bad} is not UTF-8 text; save the file as UTF-8"
        ) from error


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text without their ends, \n or \r\n; nothing after the last end is no line.

    Where there is no \n at all, \r ends the lines, as in files of an old Mac.
    """
    if "\n" not in text:
        return text.removesuffix("\r").split("\r")
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if "\r" in text else lines


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 file, up to the last that is not blank; "-" is standard input.

    Blank lines before it are lines as well, so that answers to the lines belong to them.

    Raises:
        FinepruneError: as `read_text`, and where every line is blank.
    """
    lines = split_lines(read_text(path))
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise FinepruneError(f"{path}: no text in it; one a line is expected")
    return lines


def check_unicode(text: str, what: str) -> None:
    r"""Raise unless UTF-8 can express a text: JSON can hold half of a surrogate pair, such as \ud83d.

    Raises:
        FinepruneError: it begins with `what`, the place of the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FinepruneError(
            f"{what} holds half of a surrogate pair at character {error.start}; write it as UTF-8"
        ) from error
