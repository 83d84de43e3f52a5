"""Read sentences of words and tags from CoNLL files, tables and the hub; errors name the file and line."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fineprune._messages import listing
from fineprune._text_files import find_file, read_text
from fineprune.errors import FinepruneError
from fineprune.tasks.tables import check_columns, column_names, open_hub, read_table

TABLES = (".jsonl", ".parquet")
_TAG_COLUMNS = ("ner_tags", "tags")

_BLANKS = re.compile(r"[ \t]+")  # not \s: a no-break space is part of a word


@dataclass(frozen=True)
class Sentence:
    """Words, and a cell of the tag column for each."""

    words: list[str]
    tags: list[Any]
    """Text or numbers."""

    place: str
    """The file; in tables also the row."""

    line: int | None = None
    """In CoNLL files the line of the first word; the others follow it."""

    def where(self, index: int) -> str:
        """Return the file and line (or the row) of one word."""
        return self.place if self.line is None else f"{self.place}, line {self.line + index}"


def read_sentences(path: str, words: str | int | None, tags: str | int | None) -> list[Sentence]:
    """Read a local file: `.jsonl` and `.parquet` are tables of lists, all else is CoNLL.

    Args:
        path: the file.
        words: the column of the words: its name in a table (None: `tokens`), its number from 0 in a CoNLL
            file (None: the first).
        tags: the column of the tags, likewise (None: `ner_tags` or `tags`; the last).

    Raises:
        FinepruneError: a file of another form, or a wrong column.
    """
    place = find_file(path)
    suffix = place.suffix.lower()
    table = suffix in TABLES
    for name, column in (("words", words), ("tags", tags)):
        if column is not None and isinstance(column, str) != table:
            wanted = "the name of a column" if table else "the number of a column, from 0"
            raise FinepruneError(f"task: {name} is {column!r}, but for {path} it must be {wanted}")
    if suffix in (".json", ".csv"):
        raise FinepruneError(
            f"{path}: a file named *{suffix} is neither CoNLL nor a table; "
            f"tables with lists are {' and '.join(TABLES)}"
        )
    if not table:
        return list(_conll(path, read_text(place), 0 if words is None else int(words), tags))
    text = "tokens" if words is None else str(words)
    column = _tag_column(column_names(place)) if tags is None else str(tags)
    columns = read_table(place, [text, column])
    return list(_rows(path, columns[text], columns[column]))


def read_hub_sentences(
    place: tuple[str, str | None, str], words: str | int | None, tags: str | int | None
) -> tuple[list[Sentence], tuple[str, ...] | None]:
    """Return the sentences of a split of the hub, and the names of its tags where it has them.

    `place` is the data set's name, its subset and the split.
    """
    import datasets

    text = "tokens" if words is None else str(words)
    where, table = open_hub(*place)
    column = _tag_column(table.column_names) if tags is None else str(tags)
    check_columns(where, (text, column), table.column_names)
    feature = table.features[column]
    feature = getattr(feature, "feature", feature)
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return list(_rows(where, list(table[text]), list(table[column]))), names


def _tag_column(there: Sequence[str]) -> str:
    """Return the first of the usual columns that a table has, or else the most usual."""
    return next((column for column in _TAG_COLUMNS if column in there), _TAG_COLUMNS[0])


def _conll(path: str, text: str, words: int, tags: str | int | None) -> Iterator[Sentence]:
    """Yield the sentences of a word a line, with blank lines between them and `-DOCSTART-` lines between
    documents.
    """
    if not text.strip():
        raise FinepruneError(f"{path}: the file is empty")
    column = -1 if tags is None else int(tags)
    width = first = 0
    sentence: list[list[str]] = []
    empty = True
    for number, line in enumerate([*text.split("\n"), ""], start=1):  # splitlines() would split at U+2028
        line = line.strip(" \t\r")
        fields = [field.strip(" ") for field in line.split("\t")] if "\t" in line else _BLANKS.split(line)
        if not line or fields[0] == "-DOCSTART-":
            if sentence:
                empty = False
                yield Sentence(
                    [row[words] for row in sentence], [row[column] for row in sentence], path, first
                )
            sentence = []
            continue
        width = width or len(fields)
        _check_fields(f"{path}, line {number}", fields, width, words, column)
        if not sentence:
            first = number
        sentence.append(fields)
    if empty:
        raise FinepruneError(f"{path}: has no sentences")


def _check_fields(where: str, fields: Sequence[str], width: int, words: int, tags: int) -> None:
    if len(fields) != width:
        raise FinepruneError(
            f"{where}: {len(fields)} fields {listing(fields, 80)}, the first line has {width}; "
            "a line is a word and its tag, a blank line ends a sentence"
        )
    if len(fields) < 2:
        raise FinepruneError(f"{where}: {fields[0]!r} has no tag; a line is a word and its tag")
    for name, column in (("words", words), ("tags", tags)):
        if not -width <= column < width:
            raise FinepruneError(f"{where}: {name} is column {column}, the line has {width} (from 0)")
        if not fields[column]:
            raise FinepruneError(f"{where}: column {column} is empty")


def _rows(where: str, words: Sequence[Any], tags: Sequence[Any]) -> Iterator[Sentence]:
    """Yield the rows of a table that have words."""
    empty = True
    for number, (row, cells) in enumerate(zip(words, tags, strict=True), start=1):
        place = f"{where}, row {number}"
        if not isinstance(row, list) or not all(isinstance(word, str) for word in row):
            raise FinepruneError(f"{place}: the words are {str(row)[:60]!r}, expected a list of texts")
        if not isinstance(cells, list) or len(cells) != len(row):
            length = f"{len(cells)} tags" if isinstance(cells, list) else f"the tags {str(cells)[:60]!r}"
            raise FinepruneError(f"{place}: {len(row)} words but {length}; each word needs one")
        if row:
            empty = False
            yield Sentence(row, cells, place)
    if empty:
        raise FinepruneError(f"{where}: has no sentences")
