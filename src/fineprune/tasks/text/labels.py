"""From the cells of a label column to class ids or to values.

A cell is what a table held: text, a number, or nothing. Rows are counted from 1, without the
header. Every error names the file, the row and the value.
"""

import re
from collections.abc import Sequence
from typing import Any

from fineprune._messages import listing
from fineprune._validation import is_number
from fineprune.errors import FinepruneError

# 09.5 is one, but not 007: that may be a code, and another one than 7.
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,299}|\d{1,300}\.\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LEADING_ZEROS = re.compile(r"^(\s*[+-]?)0+(?=\d)", re.ASCII)
_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0*)?", re.ASCII)  # programs write an integer column with gaps as 1.0
_DISTINCT_ROWS = 20  # from so many rows on, a label for each row is not a label


def number(cell: Any) -> int | float | None:
    """The finite number that a cell holds, or None. 1, 1.0, "1" and "1.0" are the integer 1; "01" is text."""
    if isinstance(cell, str):
        cell = cell.strip()
        if not _NUMBER.fullmatch(cell):
            return None
        try:
            return int(cell)
        except ValueError:
            cell = float(cell)
    if not is_number(cell):
        return None
    return int(cell) if cell == int(cell) else cell


def check_labels(cells: Sequence[Any], where: str) -> None:
    """Raise unless each cell is text, a number or a truth value; NaN and "" are no label."""
    for row, cell in enumerate(cells, start=1):
        if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
            raise FinepruneError(f"{where}, row {row}: has no label ({cell!r}); remove the row or label it")
        if not isinstance(cell, str | int | float):
            raise FinepruneError(f"{where}, row {row}: label {cell!r} is neither text nor a number")


def infer_labels(cells: Sequence[Any], where: str) -> tuple[str, ...] | None:
    """The class names that the label column of the training data implies, in the order of their ids.

    All integers: their digits, in numerical order. All numbers, not all integers: None, which
    means regression. Anything else: the names, in alphabetical order. Cells are as
    `check_labels` leaves them. Raises `FinepruneError` when each of 20 or more rows has a label of
    its own, for then the column is not a class, and when a class would have two spellings (1e3 and 1000).
    """
    distinct = {_name(cell): number(cell) for cell in cells}
    numbers = [value for value in distinct.values() if value is not None]
    numeric = len(numbers) == len(distinct)
    if numeric and any(isinstance(value, float) for value in numbers):
        return None
    _check_spellings(cells, where)
    if len(distinct) == len(cells) >= _DISTINCT_ROWS:
        raise FinepruneError(
            f"{where}: each of the {len(cells)} rows has a label of its own, such as {cells[0]!r}; "
            "name the right column with `label`, or set `metric: pearson` when it is a measurement"
        )
    return tuple(str(value) for value in sorted(numbers)) if numeric else tuple(sorted(distinct))


def label_ids(cells: Sequence[Any], names: Sequence[str], where: str) -> list[int]:
    """The id of each cell, in 0 .. len(names) - 1.

    A cell is one of `names`, or the number of one. Where names are integers themselves ("1" to
    "5", "007") an integer is a name, never a position. Raises `FinepruneError` for any other cell.
    """
    ids = {name: index for index, name in enumerate(names)}
    by_position = not any(isinstance(number(name), int) or name.isdecimal() for name in names)
    found: dict[Any, int] = {}
    for row, cell in enumerate(cells, start=1):
        key = (type(cell), cell)
        if key in found:
            continue
        name, value = _name(cell), number(cell)
        if isinstance(cell, str) and cell in ids:
            found[key] = ids[cell]
        elif name in ids:
            found[key] = ids[name]
        elif by_position and isinstance(value, int) and 0 <= value < len(names):
            found[key] = value
        else:
            numbers = f", or a number from 0 to {len(names) - 1}" if by_position else ""
            raise FinepruneError(
                f"{where}, row {row}: label {cell!r} is not known; allowed are {listing(names)}{numbers}"
            )
    return [found[type(cell), cell] for cell in cells]


def label_values(cells: Sequence[Any], where: str) -> list[float]:
    """Each cell as a finite number, for regression. Raises `FinepruneError` for any other cell."""
    values = []
    for row, cell in enumerate(cells, start=1):
        value = number(_LEADING_ZEROS.sub(r"\1", cell) if isinstance(cell, str) else cell)
        if value is None:
            raise FinepruneError(f"{where}, row {row}: label {cell!r} is not a number, as regression needs")
        values.append(float(value))
    return values


def from_class_label(
    cells: Sequence[Any], names: Sequence[str], known: Sequence[str] | None, where: str
) -> list[Any]:
    """The cells of a hub `ClassLabel` as names; as positions when `known` labels rename them.

    Raises `FinepruneError` for -1 and null, the hub's marks for the hidden labels of a test split.
    """
    for row, cell in enumerate(cells, start=1):
        if cell is None or cell < 0:
            raise FinepruneError(
                f"{where}, row {row}: has no label ({cell}); the labels of this split are hidden"
            )
    if known is not None and not set(names) <= set(known):
        return list(cells)
    return [names[cell] for cell in cells]


def _check_spellings(cells: Sequence[Any], where: str) -> None:
    """Raise where texts are one number, but for 1 and 1.0: they may be codes, each a class of its own."""
    known: dict[str, tuple[str, str]] = {}
    for cell in dict.fromkeys(cell for cell in cells if isinstance(cell, str)):
        name = _name(cell)
        spelling = name if number(cell) is None or _WHOLE.fullmatch(cell.strip()) else cell.strip()
        other, first = known.setdefault(name, (spelling, cell))
        if spelling != other:
            raise FinepruneError(
                f"{where}: the labels {first!r} and {cell!r} are one number; write them alike if they are "
                "one class, else put a letter before them"
            )


def _name(cell: Any) -> str:
    """The class name of a cell: an integer's digits, true and false, or the text as it is."""
    if isinstance(cell, bool):
        return str(cell).lower()
    value = number(cell)
    return str(cell if value is None else value)
