"""Read texts without labels: a text a line, columns of a table, or the paragraphs and questions of SQuAD."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._text_files import find_file, read_lines
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.questions.squad import read_file, read_paragraphs
from fineprune.tasks.tables import SUFFIXES, hub_name, read_hub, read_table


class Texts(NamedTuple):
    """Different texts in the order of the file, and the number of those that were dropped."""

    texts: list[str]
    blank: int = 0
    repeated: int = 0


def read_texts(path: str, columns: Sequence[str]) -> Texts:
    """Read the texts of a file.

    Args:
        path: `.txt` has a text a line, `.json` is SQuAD's, others are tables.
        columns: the columns of a table whose cells are the texts.

    Raises:
        FinepruneError: the file cannot be read, or a cell is not text.
    """
    place = find_file(path)
    suffix = place.suffix.lower()
    if suffix == ".txt":
        return cleaned(read_lines(place))
    if suffix == ".json":
        return cleaned(_paragraphs_with_questions(place))
    if suffix not in SUFFIXES:
        raise FinepruneError(
            f"{path}: cannot read texts from a file named *{suffix}; known are .txt (a text a line), "
            f"{', '.join(SUFFIXES)} (columns of a table) and .json (SQuAD's)"
        )
    return cleaned(_row_by_row(str(path), read_table(place, columns)))


def _paragraphs_with_questions(place: Path) -> Iterator[str]:
    """Yield each paragraph of a SQuAD file, with its questions behind it: any part of the file has both."""
    read = read_file(place, unanswerable=True, mismatched="skip")
    questions: dict[str, list[str]] = {}
    for paragraph, question in zip(read.contexts, read.questions, strict=True):
        questions.setdefault(paragraph, []).append(question)
    for paragraph in read_paragraphs(place):
        yield paragraph
        yield from questions.get(paragraph, ())


def _row_by_row(where: str, table: dict[str, list[Any]]) -> Iterator[str]:
    """Yield the texts of several columns, those of a row together; raise for a cell that is not text."""
    columns = [list(text_cells(where, {name: cells})) for name, cells in table.items()]
    for row in zip(*columns, strict=True):
        yield from row


def read_split(place: tuple[str, str | None, str], columns: Sequence[str]) -> Texts:
    """Read the same columns from the hub: `place` is the data set's name, its subset and the split."""
    return cleaned(_row_by_row(hub_name(*place), read_hub(*place, columns)[0]))


def cleaned(texts: Iterable[str]) -> Texts:
    """Return the different texts without white space around them; blank ones are dropped."""
    stripped = [text.strip() for text in texts]
    full = [text for text in stripped if text]
    different = list(dict.fromkeys(full))
    return Texts(different, len(stripped) - len(full), len(full) - len(different))


class Pairs(NamedTuple):
    """Pairs of texts with the similarity that people gave them."""

    first: list[str]
    second: list[str]
    scores: list[float]


def read_pairs(path: str) -> Pairs:
    """Read a table with the columns sentence1, sentence2 and score, as STS-B has them.

    White space around texts is dropped, and so are rows with a blank one, with a warning.
    """
    table = read_table(path, ("sentence1", "sentence2", "score"))
    columns = [[*text_cells(path, {name: table[name]})] for name in ("sentence1", "sentence2")]
    first, second, full = _full_rows(path, columns)
    scores = numbers_of(path, table["score"])
    return Pairs(first, second, differing(path, [scores[place] for place in full], "a correlation"))


def _full_rows(path: str, columns: Sequence[Sequence[str]]) -> tuple[list[str], list[str], list[int]]:
    """Return two columns without white space around their texts, and the places of the rows without a blank.

    A warning counts the other rows, which are left out.
    """
    rows = [(first.strip(), second.strip()) for first, second in zip(*columns, strict=True)]
    full = [place for place, row in enumerate(rows) if all(row)]
    if len(full) < len(rows):
        warnings.warn(
            f"{path}: {len(rows) - len(full)} of {len(rows)} rows have a blank text and are dropped",
            FinepruneWarning,
            stacklevel=4,
        )
    return [rows[place][0] for place in full], [rows[place][1] for place in full], full


def numbers_of(where: str, cells: Sequence[Any]) -> list[float]:
    """Return the numbers of a column of scores; raise `FinepruneError` for one that is not finite."""
    scores = []
    for row, cell in enumerate(cells, start=1):
        try:
            scores.append(float(cell))
        except (TypeError, ValueError) as error:
            raise FinepruneError(f"{where}, row {row}: score is {cell!r}, expected a number") from error
        if not math.isfinite(scores[-1]):
            raise FinepruneError(f"{where}, row {row}: score is {cell!r}, expected a finite number")
    return scores


def differing(where: str, scores: list[float], needing: str) -> list[float]:
    """Return scores; raise `FinepruneError` where none differ, which `needing`, in the message, needs."""
    if not scores:
        raise FinepruneError(f"{where}: every row has a blank text; give rows of two texts and a score")
    if len(set(scores)) < 2:
        raise FinepruneError(f"{where}: all scores are {scores[0]:g}; {needing} needs different ones")
    return scores


def questions_with_paragraphs(place: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the questions of a SQuAD file with the paragraphs that answer them, and all paragraphs.

    Questions without an answer, as in SQuAD v2, have no right paragraph: they are left out, with a warning.
    """
    read = read_file(place, unanswerable=True, mismatched="skip")
    rows = zip(read.questions, read.contexts, read.answers, strict=True)
    found = [(question, paragraph) for question, paragraph, answers in rows if answers]
    if len(found) < len(read):
        warnings.warn(
            f"{place}: {len(read) - len(found):,} of {len(read):,} questions have no answer and are dropped",
            FinepruneWarning,
            stacklevel=4,
        )
    return found, [paragraph.strip() for paragraph in read_paragraphs(place)]


class Retrieval(NamedTuple):
    """Different queries, the texts among which each is searched for, and the right texts of each query."""

    queries: list[str]
    texts: list[str]
    right: list[list[int]]
    """For each query the indices in `texts`, at least one."""


def read_retrieval(path: str) -> Retrieval:
    """Read queries and their texts: SQuAD's questions and paragraphs (`.json`), or a table.

    The columns of a table are `query` and `text`; each query is searched for among all different texts. The
    texts of all rows with a query are right for it. White space and blank texts are as in `read_pairs`.
    """
    if Path(path).suffix.lower() == ".json":
        found, others = questions_with_paragraphs(find_file(path))
        columns = [list(column) for column in zip(*found, strict=True)] or [[], []]
    else:
        others = []
        table = read_table(path, ("query", "text"))
        columns = [[*text_cells(path, {name: table[name]})] for name in ("query", "text")]
    queries, contexts, _ = _full_rows(path, columns)
    texts = {text: number for number, text in enumerate(dict.fromkeys([*contexts, *others]))}
    if len(texts) < 2:
        raise FinepruneError(f"{path}: has one text only, so any model finds it; give a file with more")
    right: dict[str, dict[int, None]] = {}
    for query, text in zip(queries, contexts, strict=True):
        right.setdefault(query, {})[texts[text]] = None
    return Retrieval(list(right), list(texts), [list(places) for places in right.values()])


def text_cells(where: str, table: dict[str, list[Any]]) -> Iterable[str]:
    """Yield the cells of a table, column by column; raise `FinepruneError` for one that is not text."""
    for column, cells in table.items():
        for row, text in enumerate(cells, start=1):
            if not isinstance(text, str):
                raise FinepruneError(
                    f"{where}, row {row}: column {column!r} holds {text!r}, which is not text"
                )
            yield text
