"""Read a table from a file or from the hub, as columns.

Cells are not interpreted: the words "NA", "null" and "" stay text, and the task that reads a cell
decides its meaning.
"""

import csv
import io
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fineprune._messages import listing, one_line, suggestion
from fineprune._text_files import check_unicode, find_file, read_text, split_lines
from fineprune.errors import FinepruneError

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")

_COLA = ["source", "label", "original_label", "sentence"]  # GLUE's own files of CoLA have no header
_csv_limit = threading.Lock()  # for the longest cell of csv, which is one for the whole process


def read_table(path: str | Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Read the named columns of a local file, in the order of its rows.

    - `.tsv`: a header, tabs between fields, quotes are plain characters (as in GLUE).
    - `.csv`: a header, commas, fields may be quoted.
    - `.jsonl`: one JSON object a line; every line has every asked column.
    - `.parquet`: as pyarrow reads it.

    Text is UTF-8, with or without a byte order mark; blank lines are skipped. GLUE's own files of CoLA have
    no header: their columns are source, label, original_label, sentence.

    Returns:
        A list of cells for each of `columns`, all of the same length, at least one row. Cells of TSV and CSV
        are `str`; those of JSONL and Parquet are of the file's types, None for null.

    Raises:
        FinepruneError: the file does not exist, is empty, is damaged (with the line), or lacks a column.
    """
    path = Path(path).expanduser()
    suffix = check_suffix(path)
    find_file(path)
    return _parquet(path, columns) if suffix == ".parquet" else _from_text(path, suffix, columns)


def check_suffix(path: Path) -> str:
    """Return the suffix of a table's file, in lower case; raise `FinepruneError` unless it is a known one."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = f"known are {', '.join(SUFFIXES)}"
        hint = (
            f"write one object a line and name it {path.stem}.jsonl; {known}" if suffix == ".json" else known
        )
        raise FinepruneError(f"{path}: cannot read a table from a file named *{suffix}; {hint}")
    return suffix


def column_names(path: Path) -> list[str]:
    """Return the columns of a local file (in JSONL, of its first line); none where it cannot be read."""
    path = path.expanduser()
    with suppress(Exception):  # reading the data will say what is wrong
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet  # type: ignore[import-untyped]

            return list(pyarrow.parquet.read_schema(path).names)
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            line = split_lines(next(line for line in file if line.strip()))[0]
        if path.suffix.lower() == ".jsonl":
            row = json.loads(line)
            return list(row) if isinstance(row, dict) else []
        return line.split("\t") if path.suffix.lower() == ".tsv" else next(csv.reader([line]))
    return []


def read_hub(
    name: str, subset: str | None, split: str, columns: Sequence[str]
) -> tuple[dict[str, list[Any]], dict[str, tuple[str, ...]]]:
    """Read the named columns of a data set on the Hugging Face hub (or in its local cache).

    Returns:
        The columns, as `read_table` does, and for each `ClassLabel` among them the names of its numbers.

    Raises:
        FinepruneError: the data set, the subset, the split or a column is unknown, or the hub cannot be
            reached.
    """
    import datasets

    where, table = open_hub(name, subset, split)
    check_columns(where, columns, table.column_names)
    names = {
        column: tuple(feature.names)
        for column in columns
        if isinstance(feature := table.features[column], datasets.ClassLabel)
    }
    return {column: list(table[column]) for column in columns}, names


def open_hub(name: str, subset: str | None, split: str) -> tuple[str, Any]:
    """Return the name of a split of the hub in messages, and its rows as a `datasets.Dataset`, not empty."""
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
    """Return the name of a split of the hub in messages: `glue/sst2[train]`."""
    return f"{name}{'/' + subset if subset else ''}[{split}]"


def _from_text(path: Path, suffix: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    text = read_text(path)
    if not text.strip():
        raise FinepruneError(f"{path}: the file is empty")
    if suffix == ".jsonl":
        return _jsonl(path, text, columns)
    return _delimited(path, _tsv_rows(text) if suffix == ".tsv" else _csv_rows(path, text), columns)


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(split_lines(text), start=1):
        yield number, line.split("\t")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    with _csv_limit:
        usual = csv.field_size_limit()
        try:
            csv.field_size_limit(max(usual, len(text)))
            return iter(_parsed_csv(path, text))
        finally:
            csv.field_size_limit(usual)


def _parsed_csv(path: Path, text: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    line = 1
    try:
        for row in reader:
            rows.append((line, row or [""]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise FinepruneError(f"{path}, line {line}: the row that starts here is not CSV: {error}") from error
    return rows


def _delimited(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> dict[str, list[Any]]:
    first, header = next((line, row) for line, row in rows if row != [""])
    if is_of_cola(header) and not set(columns) & set(header):
        rows = itertools.chain([(first, header)], rows)
        header = _COLA
    check_columns(path, columns, header)
    at = [header.index(column) for column in columns]
    cells: list[list[str]] = [[] for _ in columns]
    for line, row in rows:
        if row == [""] and len(header) > 1:
            continue
        if len(row) != len(header):
            raise FinepruneError(
                f"{path}, line {line}: {len(row)} fields, the header has {len(header)}: {listing(header)}"
            )
        if row == header and len(header) > 1:  # of files that were joined
            raise FinepruneError(f"{path}, line {line}: is the header again; remove the line")
        for column, index in zip(cells, at, strict=True):
            column.append(row[index])
    if not any(cells):
        raise FinepruneError(f"{path}: has a header but no rows")
    return dict(zip(columns, cells, strict=True))


def is_of_cola(row: Sequence[str]) -> bool:
    """Return whether a row is one of CoLA: a source, 0 or 1, nothing or a star, a sentence."""
    return len(row) == len(_COLA) and row[1] in ("0", "1") and row[2] in ("", "*")


def _jsonl(path: Path, content: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {column: [] for column in columns}
    for number, line in enumerate(split_lines(content), start=1):
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
        check_columns(f"{path}, line {number}", columns, list(row))
        if "\\u" in line:  # else no cell can hold half of a surrogate pair
            for column in columns:
                cell = row[column]
                text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
                check_unicode(text, f"{path}, line {number}: column {column!r}")
        for column in columns:
            table[column].append(row[column])
    return table


def _parquet(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_columns(path, columns, file.schema_arrow.names)
            table = file.read(columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise FinepruneError(f"{path}: not a complete Parquet file: {one_line(error)}") from error
    if not table.num_rows:
        raise FinepruneError(f"{path}: has no rows")
    try:
        return {column: table.column(column).to_pylist() for column in columns}
    except UnicodeDecodeError as error:
        raise FinepruneError(f"{path}: holds text that is not UTF-8: {one_line(error)}") from error
    except (ValueError, OverflowError) as error:  # times beyond those of Python
        raise FinepruneError(f"{path}: holds a value that cannot be read: {one_line(error)}") from error


def check_columns(where: str | Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raise `FinepruneError` unless each wanted column is `there` exactly once."""
    for column in wanted:
        if column not in there:
            spaced = [name for name in there if name.strip() == column]
            hint = (
                f"it has {spaced[0]!r}: remove the space from its header"
                if spaced
                else suggestion(column, there, 3) + f"it has {listing(there)}"
            )
            hint = _other_separator(Path(where).suffix.lower(), there) or hint
            raise FinepruneError(f"{where}: no column {column!r}; {hint}")
        if there.count(column) > 1:
            raise FinepruneError(
                f"{where}: {there.count(column)} columns are named {column!r}; rename all but one"
            )


def _other_separator(suffix: str, there: Sequence[str]) -> str:
    """Return what is wrong with a header that was read as one column, if another character separates it."""
    own = {".csv": ",", ".tsv": "\t"}.get(suffix)
    if own is None or len(there) != 1:
        return ""
    found = next((one for one in (own, *";\t|,") if one in there[0]), None)
    if found is None:
        return ""
    if found == own:
        return f"the header is the one field {there[0]!r}: leave out the quotes around the lines"
    return (
        f"the header is {there[0]!r}, separated by {found!r}, and fineprune reads commas in *.csv and "
        "tabs in *.tsv: write the file anew, or rename it"
    )
