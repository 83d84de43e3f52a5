"""Sentences of words and tags from CoNLL files, tables and the hub, each error with its file and line."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fineprune._messages import listing
from fineprune.errors import FinepruneError
from fineprune.tasks.tables import column_names, decode, find_file, open_hub, read_table

TABLES = (".jsonl", ".parquet")
_TAG_COLUMNS = ("ner_tags", "tags")

_BLANKS = re.compile(r"[ \t]+")  # not \s: a no-break space is part of a word


@dataclass(frozen=True)
class Sentence:
    """Words, a cell of the tag column for each (text or a number), and where the first of them is.

    Of a CoNLL file `line` is the line of the first word, and the others follow it; else `line` is None
    and `place` tells the row.
    """

    words: list[str]
    tags: list[Any]
    place: str
    line: int | None = None

    def where(self, index: int) -> str:
        """The file and line (or the row) of one word."""
        return self.place if self.line is None else f"{self.place}, line {self.line + index}"


def read_sentences(path: str, words: str | int | None, tags: str | int | None) -> list[Sentence]:
    """Read a local file: `.jsonl` and `.parquet` are tables of lists, all else is CoNLL.

    `words` and `tags`: the columns, names in tables (None: `tokens`, and `ner_tags` or `tags`), numbers
    from 0 in CoNLL files (None: the first and the last). Raises `FinepruneError`.
    """
    place = find_file(path)
    suffix = place.suffix.lower()
    table = suffix in TABLES
    for name, column in (("words", words), ("tags", tags)):
        if column is not None and isinstance(column, str) != table:
            wanted = "the name of a column" if table else "the number of a column, from 0"
            raise FinepruneError(f"task: {name} is {column!r}, but of {path} it must be {wanted}")
    if suffix in (".json", ".csv"):
        raise FinepruneError(
            f"{path}: a file named *{suffix} is neither CoNLL nor a table; "
            f"tables with lists are {' and '.join(TABLES)}"
        )
    if not table:
        return list(_conll(path, decode(place), 0 if words is None else int(words), tags))
    text = "tokens" if words is None else str(words)
    column = _tag_column(column_names(place)) if tags is None else str(tags)
    columns = read_table(place, [text, column])
    return list(_rows(path, columns[text], columns[column]))


def read_hub_sentences(
    name: str, subset: str | None, split: str, words: str | int | None, tags: str | int | None
) -> tuple[list[Sentence], tuple[str, ...] | None]:
    """Read a data set of the hub: its sentences, and the names of its tags where it has them."""
    import datasets

    text = "tokens" if words is None else str(words)
    where, table = open_hub(name, subset, split)
    column = _tag_column(table.column_names) if tags is None else str(tags)
    for wanted in (text, column):
        if wanted not in table.column_names:
            raise FinepruneError(f"{where}: no column {wanted!r}; it has {listing(table.column_names)}")
    feature = table.features[column]
    feature = getattr(feature, "feature", feature)
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return list(_rows(where, list(table[text]), list(table[column]))), names


def _tag_column(there: Sequence[str]) -> str:
    """The first of the usual columns that a table has, or else the most usual."""
    return next((column for column in _TAG_COLUMNS if column in there), _TAG_COLUMNS[0])


def _conll(path: str, text: str, words: int, tags: str | int | None) -> Iterator[Sentence]:
    """A word a line, blank lines between sentences, `-DOCSTART-` lines between documents."""
    if not text.strip():
        raise FinepruneError(f"{path}: the file is empty")
    picked = -1 if tags is None else int(tags)
    width = first = 0
    sentence: list[list[str]] = []
    found = False
    for number, line in enumerate([*text.split("\n"), ""], start=1):  # splitlines() would split at U+2028
        line = line.strip(" \t\r")
        fields = [field.strip(" ") for field in line.split("\t")] if "\t" in line else _BLANKS.split(line)
        if not line or fields[0] == "-DOCSTART-":
            if sentence:
                found = True
                yield Sentence(
                    [row[words] for row in sentence], [row[picked] for row in sentence], path, first
                )
            sentence = []
            continue
        width = width or len(fields)
        _check_fields(f"{path}, line {number}", fields, width, words, picked)
        if not sentence:
            first = number
        sentence.append(fields)
    if not found:
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
    """The rows of a table; those without words are left out."""
    found = False
    for number, (row, cells) in enumerate(zip(words, tags, strict=True), start=1):
        place = f"{where}, row {number}"
        if not isinstance(row, list) or not all(isinstance(word, str) for word in row):
            raise FinepruneError(f"{place}: the words are {str(row)[:60]!r}, expected a list of texts")
        if not isinstance(cells, list) or len(cells) != len(row):
            length = f"{len(cells)} tags" if isinstance(cells, list) else f"the tags {str(cells)[:60]!r}"
            raise FinepruneError(f"{place}: {len(row)} words but {length}; each word needs one")
        if row:
            found = True
            yield Sentence(row, cells, place)
    if not found:
        raise FinepruneError(f"{where}: has no sentences")
