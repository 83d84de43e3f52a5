"""Numbers as the page writes them, and the cells of its tables."""

import json
import math
from typing import Any, NamedTuple

NONE = "–"
_SPACE = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


class Entry(NamedTuple):
    """A cell of a table."""

    text: str
    value: str | None = None
    """The number in full, as JSON; None: a text, or a number that there is not."""

    number: bool = False
    """Aligned to the right."""

    best: bool = False
    href: str | None = None


class Grid(NamedTuple):
    """A table of the page."""

    title: str
    columns: list[Entry]
    lines: list[list[Entry]]


def trimmed(grid: Grid) -> tuple[Grid, list[str]]:
    """The table without the columns of numbers in which no line has one, and what these are called."""
    empty = [
        column
        for column, heading in enumerate(grid.columns)
        if heading.number and all(line[column].value is None for line in grid.lines)
    ]
    columns, *lines = (
        [entry for column, entry in enumerate(line) if column not in empty]
        for line in (grid.columns, *grid.lines)
    )
    return Grid(grid.title, columns, lines), [grid.columns[column].text for column in empty]


def exact(value: Any) -> str | None:
    """A number in full, for what reads the page back."""
    return None if number_of(value) is None else json.dumps(value)


def number_of(value: Any) -> float | None:
    """The value, if it is a finite number."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if known and math.isfinite(value) else None


def numeric(value: Any, text: str | None = None) -> Entry:
    """A cell of a number; `text` is how it is shown."""
    number = number_of(value)
    if number is None:
        return Entry(NONE, number=True)
    return Entry(signed(f"{number:.4f}") if text is None else text, exact(value), number=True)


def percent(share: Any, digits: int = 1) -> str:
    """A share as "78.0 %"."""
    number = number_of(share)
    return NONE if number is None else f"{signed(f'{100 * number:.{digits}f}')}{_SPACE}%"


def points(difference: float) -> str:
    """A difference of two shares as "−5.1 points"."""
    return signed(f"{100 * difference:+.1f}{_SPACE}points")


def megabytes(size: float) -> str:
    """Bytes as "7.1 MB"."""
    return f"{size / 1e6:.1f}{_SPACE}MB"


def times(ratio: float) -> str:
    """A ratio as "12.3×"."""
    return f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"


def signed(text: str) -> str:
    """A number with a minus that is as wide as a plus."""
    return text.replace("-", _MINUS)


def counted(number: int, what: str) -> str:
    """A number of things: "1 run", "2 runs"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
