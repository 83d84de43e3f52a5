"""Read texts without labels: a text a line, columns of a table, or the paragraphs and questions of SQuAD."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._text_files import find_file, read_lines
from fineprune.errors import FinepruneError
from fineprune.tasks.questions.squad import read_file
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
        questions = read_file(place, unanswerable=True, mismatched="skip")
        return cleaned([*dict.fromkeys(questions.contexts), *questions.questions])
    if suffix not in SUFFIXES:
        raise FinepruneError(
            f"{path}: cannot read texts from a file named *{suffix}; known are .txt (a text a line), "
            f"{', '.join(SUFFIXES)} (columns of a table) and .json (SQuAD's)"
        )
    return cleaned(text_cells(str(path), read_table(place, columns)))


def read_split(place: tuple[str, str | None, str], columns: Sequence[str]) -> Texts:
    """Read the same columns from the hub: `place` is the data set's name, its subset and the split."""
    return cleaned(text_cells(hub_name(*place), read_hub(*place, columns)[0]))


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
    """Read a table with the columns sentence1, sentence2 and score, as STS-B has them."""
    table = read_table(path, ("sentence1", "sentence2", "score"))
    first, second = ([*text_cells(path, {name: table[name]})] for name in ("sentence1", "sentence2"))
    return Pairs(first, second, scores_of(path, table["score"], "a correlation"))


def scores_of(where: str, cells: Sequence[Any], needing: str) -> list[float]:
    """Return the numbers of a column of scores.

    Args:
        where: the file, in messages.
        cells: the column.
        needing: what needs them, in messages.

    Raises:
        FinepruneError: a cell is no finite number, or all are equal.
    """
    scores = []
    for row, cell in enumerate(cells, start=1):
        try:
            scores.append(float(cell))
        except (TypeError, ValueError) as error:
            raise FinepruneError(f"{where}, row {row}: score is {cell!r}, expected a number") from error
        if not math.isfinite(scores[-1]):
            raise FinepruneError(f"{where}, row {row}: score is {cell!r}, expected a finite number")
    if len(set(scores)) < 2:
        raise FinepruneError(f"{where}: all scores are {scores[0]:g}; {needing} needs different ones")
    return scores


class Retrieval(NamedTuple):
    """Queries, the texts among which each is searched for, and the index of the right text of each query."""

    queries: list[str]
    texts: list[str]
    right: list[int]


def read_retrieval(path: str) -> Retrieval:
    """Read queries and their texts: SQuAD's questions and paragraphs (`.json`), or a table.

    The columns of a table are `query` and `text`; each query is searched for among all different texts.
    """
    if Path(path).suffix.lower() == ".json":
        questions = read_file(find_file(path), unanswerable=True, mismatched="skip")
        queries, contexts = questions.questions, questions.contexts
    else:
        table = read_table(path, ("query", "text"))
        queries, contexts = ([*text_cells(path, {name: table[name]})] for name in ("query", "text"))
    texts = {text: number for number, text in enumerate(dict.fromkeys(contexts))}
    if len(texts) < 2:
        raise FinepruneError(f"{path}: has one text only, so any model finds it; give a file with more")
    return Retrieval(list(queries), list(texts), [texts[text] for text in contexts])


def text_cells(where: str, table: dict[str, list[Any]]) -> Iterable[str]:
    """Yield the cells of a table, column by column; raise `FinepruneError` for one that is not text."""
    for column, cells in table.items():
        for row, text in enumerate(cells, start=1):
            if not isinstance(text, str):
                raise FinepruneError(
                    f"{where}, row {row}: column {column!r} holds {text!r}, which is not text"
                )
            yield text
