"""A table from a file or from the hub, as columns.

Cells are never guessed at: the words "NA", "null" and "" stay text, and what a cell means is
decided by the task that reads it.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fineprune._messages import listing, near, one_line
from fineprune.errors import FinepruneError

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


def read_table(path: str | Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Read the named columns of a local file, in the order of its rows.

    - `.tsv`: a header, tabs between fields, quotes are plain characters (as in GLUE).
    - `.csv`: a header, commas, fields may be quoted.
    - `.jsonl`: one JSON object a line; every line has every asked column.
    - `.parquet`: as pyarrow reads it.

    Text is UTF-8, with or without a byte order mark; blank lines are skipped. Cells of TSV and
    CSV are `str`; those of JSONL and Parquet are what the file holds, None for null.

    Returns a list of cells for each of `columns`, all of the same length, at least one row.
    Raises `FinepruneError` when the file is not there, is empty, is broken (with the line), or
    lacks a column.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = f"known are {', '.join(SUFFIXES)}"
        hint = (
            f"write one object a line and name it {path.stem}.jsonl; {known}" if suffix == ".json" else known
        )
        raise FinepruneError(f"{path}: cannot read a table from a file named *{suffix}; {hint}")
    find_file(path)
    return _parquet(path, columns) if suffix == ".parquet" else _from_text(path, suffix, columns)


def column_names(path: Path) -> list[str]:
    """The columns of a local file (in JSONL, of its first line); none where it cannot be read."""
    path = path.expanduser()
    with suppress(Exception):  # reading the data will say what is wrong
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet  # type: ignore[import-untyped]

            return list(pyarrow.parquet.read_schema(path).names)
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            line = next(line for line in file if line.strip()).rstrip("\r\n")
        if path.suffix.lower() == ".jsonl":
            return list(json.loads(line))
        return line.split("\t") if path.suffix.lower() == ".tsv" else next(csv.reader([line]))
    return []


def find_file(path: str | Path) -> Path:
    """The path of a file that is there. Raises `FinepruneError`."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise FinepruneError(f"{path}: is a folder; name a file in it")
    if not path.exists():
        raise FinepruneError(f"{path}: no such file (looked in {path.absolute().parent})")
    return path


def decode(path: Path) -> str:
    """The text of a UTF-8 file. Raises `FinepruneError` with the line of the first byte that is not."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FinepruneError(f"{path}: cannot be read: {one_line(error)}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        bad = f"byte 0x{raw[error.start]:02x}"
        raise FinepruneError(
            f"{path}, line {line}: {bad} is not UTF-8 text; save the file as UTF-8"
        ) from error


def read_hub(
    name: str, subset: str | None, split: str, columns: Sequence[str]
) -> tuple[dict[str, list[Any]], dict[str, tuple[str, ...]]]:
    """Read the named columns of a data set on the Hugging Face hub (or in its local cache).

    Returns the columns, as `read_table` does, and for each of them that is a `ClassLabel` the
    names of its numbers. Raises `FinepruneError` with the reason in one line when the data set,
    the subset, the split or a column is unknown, or the hub cannot be reached.
    """
    import datasets

    where, table = open_hub(name, subset, split)
    _check_columns(where, columns, table.column_names)
    names = {
        column: tuple(feature.names)
        for column in columns
        if isinstance(feature := table.features[column], datasets.ClassLabel)
    }
    return {column: list(table[column]) for column in columns}, names


def open_hub(name: str, subset: str | None, split: str) -> tuple[str, Any]:
    """A split of a data set on the hub, not empty, as a `datasets.Dataset`, and its name in messages."""
    import datasets

    where = hub_name(name, subset, split)
    try:
        table = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # many libraries fail in there, each in its own way
        raise FinepruneError(f"{where}: cannot be loaded from the hub: {one_line(error)}") from error
    if not len(table):
        raise FinepruneError(f"{where}: has no rows")
    return where, table


def hub_name(name: str, subset: str | None, split: str) -> str:
    """How messages call a split of a data set on the hub: `glue/sst2[train]`."""
    return f"{name}{'/' + subset if subset else ''}[{split}]"


def _from_text(path: Path, suffix: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    text = decode(path)
    if not text.strip():
        raise FinepruneError(f"{path}: the file is empty")
    if suffix == ".jsonl":
        return _jsonl(path, text, columns)
    return _delimited(path, _tsv_rows(text) if suffix == ".tsv" else _csv_rows(path, text), columns)


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    lines = text.removesuffix("\n").split("\n")  # splitlines() would also split at U+2028
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r").split("\t")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            yield line, row or [""]
            line = reader.line_num + 1
    except csv.Error as error:
        raise FinepruneError(f"{path}, line {line}: the row that starts here is not CSV: {error}") from error


def _delimited(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> dict[str, list[Any]]:
    _, header = next(rows)
    _check_columns(path, columns, header)
    at = [header.index(column) for column in columns]
    cells: list[list[str]] = [[] for _ in columns]
    for line, row in rows:
        if row == [""] and len(header) > 1:
            continue
        if len(row) != len(header):
            raise FinepruneError(
                f"{path}, line {line}: {len(row)} fields, the header has {len(header)}: {listing(header)}"
            )
        for column, index in zip(cells, at, strict=True):
            column.append(row[index])
    if not any(cells):
        raise FinepruneError(f"{path}: has a header but no rows")
    return dict(zip(columns, cells, strict=True))


def _jsonl(path: Path, text: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {column: [] for column in columns}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FinepruneError(f"{path}, line {number}: not JSON: {one_line(error)}") from error
        if not isinstance(row, dict):
            raise FinepruneError(
                f'{path}, line {number}: expected an object such as {{"text": …}}, got {line.strip()[:40]!r}'
            )
        _check_columns(f"{path}, line {number}", columns, list(row))
        for column in columns:
            table[column].append(row[column])
    return table


def _parquet(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(path, columns, file.schema_arrow.names)
            table = file.read(columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise FinepruneError(f"{path}: not a whole Parquet file: {one_line(error)}") from error
    if not table.num_rows:
        raise FinepruneError(f"{path}: has no rows")
    return {column: table.column(column).to_pylist() for column in columns}


def _check_columns(where: str | Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raise unless each wanted column is there exactly once."""
    for column in wanted:
        if column not in there:
            close = near(column, there)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise FinepruneError(f"{where}: no column {column!r}; {hint}it has {listing(there)}")
        if there.count(column) > 1:
            raise FinepruneError(
                f"{where}: {there.count(column)} columns are named {column!r}; rename all but one"
            )
