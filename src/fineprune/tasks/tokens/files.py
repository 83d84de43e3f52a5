"""Read sentences of words and tags from CoNLL files, tables and the hub; errors name the file and line."""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._messages import listing
from fineprune._text_files import find_file, read_text, split_lines
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.tables import check_columns, column_names, open_hub, read_table

TABLES = (".jsonl", ".parquet")
_TAG_COLUMNS = ("ner_tags", "tags")

_BLANKS = re.compile(r"[ \t]+")  # not \s: a no-break space is part of a word
_CONLL_U = 10  # columns
_NO_WORD = re.compile(r"\d+[-.]\d+$")  # a range of words that are written as one, or an empty node
_SETTING = re.compile(r"=|://")


class _Line(NamedTuple):
    number: int
    fields: list[str]
    tabs: bool
    """There are tabs between the fields."""


class _Usual(NamedTuple):
    """The form of the lines that hold words."""

    width: int
    tabs: bool
    tags: set[str]


@dataclass(frozen=True)
class Sentence:
    """Words, and a cell of the tag column for each."""

    words: list[str]
    tags: list[Any]
    """Text or numbers."""

    place: str
    """The file; in tables also the row."""

    lines: Sequence[int] | None = None
    """In CoNLL files the line of each word."""

    def where(self, index: int) -> str:
        """Return the file and line (or the row) of one word."""
        return self.place if self.lines is None else f"{self.place}, line {self.lines[index]}"


def check_form(path: str, words: str | int | None, tags: str | int | None) -> None:
    """Raise `FinepruneError` for columns that a file of this name cannot have, or a name of another form."""
    suffix = Path(path).suffix.lower()
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


def read_sentences(path: str, words: str | int | None, tags: str | int | None) -> list[Sentence]:
    """Read a local file: `.jsonl` and `.parquet` are tables of lists, all else is CoNLL.

    Args:
        path: the file.
        words: the column of the words: its name in a table (None: `tokens`), its number from 0 in a CoNLL
            file (None: the first; in `.conllu` FORM).
        tags: the column of the tags, likewise (None: `ner_tags` or `tags`; the last; UPOS).

    Raises:
        FinepruneError: a file of another form, or a wrong column.
    """
    place = find_file(path)
    check_form(path, words, tags)
    suffix = place.suffix.lower()
    table = suffix in TABLES
    if not table:
        form, tag = (1, 3) if suffix == ".conllu" else (0, -1)
        at = form if words is None else int(words), tag if tags is None else int(tags)
        sentences = list(_conll(path, read_text(place), *at))
        _check_words(sentences, at[0])
        return sentences
    text, column = columns_in(path, words, tags)
    columns = read_table(place, [text, column])
    return list(_rows(path, columns[text], columns[column]))


def columns_in(path: str, words: str | int | None, tags: str | int | None) -> tuple[str, str]:
    """Return the names of the columns of words and tags in a table."""
    tag = _tag_column(column_names(find_file(path))) if tags is None else str(tags)
    return "tokens" if words is None else str(words), tag


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


def _check_words(sentences: Sequence[Sentence], column: int) -> None:
    """Warn where the words are numbers, as in files that count the words of each sentence."""
    if all(word.isdigit() for sentence in sentences for word in sentence.words):
        warnings.warn(
            f"{sentences[0].place}: column {column}, read as the words, holds only numbers; "
            "name the column of the words with `words`",
            FinepruneWarning,
            stacklevel=2,
        )


def _conll(path: str, text: str, words: int, column: int) -> Iterator[Sentence]:
    """Yield the sentences of a word a line, with blank lines between them.

    `-DOCSTART-` lines stand between documents and comments before sentences. In CoNLL-U the lines of
    multiword tokens (1-2) repeat the words below them and those of empty nodes (1.1) are not in the text.
    """
    if not text.strip():
        raise FinepruneError(f"{path}: the file is empty")
    blocks = _blocks(text)
    if not blocks:
        raise FinepruneError(f"{path}: has no sentences")
    usual = _usual(blocks, column)
    empty = True
    for block in blocks:
        sentence = block[_comments(path, block, usual, column) :]
        if usual.width == _CONLL_U:
            sentence = [line for line in sentence if not _NO_WORD.match(line.fields[0])]
        for line in sentence:
            _check_fields(f"{path}, line {line.number}", line.fields, usual.width, words, column)
        if sentence:
            empty = False
            rows = [line.fields for line in sentence]
            numbers = [line.number for line in sentence]
            yield Sentence([row[words] for row in rows], [row[column] for row in rows], path, numbers)
    if empty:
        raise FinepruneError(f"{path}: has no sentences")


def _blocks(text: str) -> list[list[_Line]]:
    """Return the lines between blank lines and `-DOCSTART-` lines."""
    blocks: list[list[_Line]] = [[]]
    for number, line in enumerate(split_lines(text), start=1):
        line = line.strip(" \t")
        fields = [field.strip(" ") for field in line.split("\t")] if "\t" in line else _BLANKS.split(line)
        if line and fields[0] != "-DOCSTART-":
            blocks[-1].append(_Line(number, fields, "\t" in line))
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _hashes(block: Sequence[_Line]) -> int:
    """Return the number of lines at the start of a block that begin with #."""
    return next((place for place, line in enumerate(block) if line.fields[0][0] != "#"), len(block))


def _usual(blocks: Sequence[Sequence[_Line]], tags: int) -> _Usual:
    """Return the form of the lines that cannot be comments; of all lines, if every line can be one."""
    certain = [line for block in blocks for line in block[_hashes(block) :]]
    certain = certain or [line for block in blocks for line in block]
    width = len(certain[0].fields)
    known = {line.fields[tags] for line in certain if -len(line.fields) <= tags < len(line.fields)}
    return _Usual(width, certain[0].tabs, known)


def _comments(path: str, block: Sequence[_Line], usual: _Usual, tags: int) -> int:
    """Return the number of comment lines at the start of a block.

    A sentence may begin with the word #, which has a tag that other lines have. A comment has other fields
    than a word, or settings and addresses in them: `# id 12 domain=en` beside lines of four fields.
    """
    hashes = _hashes(block)
    for place, (number, fields, tabs) in enumerate(block[:hashes]):
        if len(fields) != usual.width:
            if fields[0] == "#" or usual.width == _CONLL_U:
                continue
            return place
        if fields[0] != "#" or not -usual.width <= tags < usual.width or fields[tags] in usual.tags:
            return place
        if tabs == usual.tabs and not any(map(_SETTING.search, fields)):
            warnings.warn(
                f"{path}, line {number}: '#' is read as a word with the tag {fields[tags]!r}, which no other "
                "line has; if the line is a comment, remove it",
                FinepruneWarning,
                stacklevel=2,
            )
            usual.tags.add(fields[tags])  # to warn once
            return place
    return hashes


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
