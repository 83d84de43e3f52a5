"""Format the numbers of the page, and the cells of its tables."""

import json
import math
from typing import Any, NamedTuple

NONE = "–"
_NAMES = 5  # that a sentence lists
_SPACE = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


class Entry(NamedTuple):
    """A cell of a table."""

    text: str
    value: str | None = None
    """The number in full, as JSON; None: a text, or an unknown number."""

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
    """Return the table without columns of numbers that no line has, and the names of these."""
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
    """Return a number in full, for programs that read the page."""
    return None if number_of(value) is None else json.dumps(value)


def number_of(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if known and math.isfinite(value) else None


def numeric(value: Any, text: str | None = None) -> Entry:
    """Return the cell of a number that is shown as `text`."""
    number = number_of(value)
    if number is None:
        return Entry(NONE, number=True)
    return Entry(signed(f"{number:.4f}") if text is None else text, exact(value), number=True)


def percent(share: Any, digits: int = 1) -> str:
    """Return a share as "78.0 %"."""
    number = number_of(share)
    return NONE if number is None else f"{signed(f'{100 * number:.{digits}f}')}{_SPACE}%"


def points(difference: float) -> str:
    """Return a difference of two shares as "−5.1 points"."""
    return signed(f"{100 * difference:+.1f}{_SPACE}points")


def megabytes(size: float) -> str:
    """Return bytes as "7.1 MB"."""
    return f"{size / 1e6:.1f}{_SPACE}MB"


def times(ratio: float) -> str:
    """Return a ratio as "12.3×"."""
    return f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"


def signed(text: str) -> str:
    """Return a number with a minus that is as wide as a plus."""
    return text.replace("-", _MINUS)


def counted(number: int, what: str) -> str:
    """Return a number of things: "1 run", "2 runs"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: list[str]) -> str:
    """Return names for a sentence: the first few, and how many more there are."""
    named = ", ".join(names[:_NAMES])
    more = len(names) - _NAMES
    return f"{named} and {more} more" if more > 0 else named
