"""Labeled texts: pairs with scores, and queries with their right text and, if there is one, a wrong one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._messages import choose
from fineprune._text_files import find_file
from fineprune._validation import shown
from fineprune.errors import FinepruneError
from fineprune.tasks.embeddings.texts import (
    Texts,
    cleaned,
    differing,
    numbers_of,
    questions_with_paragraphs,
    text_cells,
)
from fineprune.tasks.tables import SUFFIXES, hub_name, read_hub, read_table

COSENT, RANKING = "cosent", "ranking"
LOSSES = (COSENT, RANKING)
SCORE, NEGATIVE = "score", "negative"
_COLUMNS = {COSENT: ("sentence1", "sentence2"), RANKING: ("query", "text")}


class Groups(NamedTuple):
    """Different rows of two or more texts, in the order of the file, and the number of dropped ones."""

    rows: list[tuple[str, ...]]
    scores: list[float] | None
    """Of each row; None where the order of the texts says which belong together."""

    blank: int = 0
    repeated: int = 0

    @property
    def texts(self) -> Texts:
        """The different texts, row by row."""
        return Texts(cleaned(text for row in self.rows for text in row).texts, self.blank, self.repeated)

    def without(self, texts: Iterable[str]) -> "Groups":
        """Return the rows that have none of these texts."""
        known = set(texts)
        places = [place for place, row in enumerate(self.rows) if known.isdisjoint(row)]
        return self._replace(
            rows=[self.rows[place] for place in places],
            scores=self.scores and [self.scores[place] for place in places],
        )


def check_loss(loss: Any, given: tuple[str, ...] | None, sizes: Any) -> None:
    """Raise `FinepruneError` for settings of a recipe that cannot work.

    Args:
        loss: `task.loss`.
        given: the columns of texts that it names; None: the usual ones.
        sizes: `task.matryoshka`.
    """
    if not isinstance(sizes, tuple) or any(type(size) is not int or size < 1 for size in sizes):
        raise FinepruneError(
            f"task.matryoshka={shown(sizes)}: expected sizes of embeddings, such as [384, 128]"
        )
    if loss is None:
        if sizes:
            raise FinepruneError(
                f"task.matryoshka={list(sizes)}: is about the loss of labeled texts; give task.loss, "
                f"{' or '.join(LOSSES)}, or leave it out"
            )
        return
    choose(loss, LOSSES, "task.loss")
    if given is not None and (len(given) < 2 or (loss == COSENT and len(given) > 2)):
        raise FinepruneError(
            f"task.text={list(given)}: task.loss={loss} compares the texts of two columns"
            f"{'' if loss == COSENT else ' or more'}; name them in their order, or leave text out"
        )


def columns_of(loss: str, given: tuple[str, ...] | None, there: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the texts of a row.

    Args:
        loss: the task's loss.
        given: those that the recipe names; None: the usual ones.
        there: the columns of the table.
    """
    if given is not None:
        return given
    usual = _COLUMNS[loss]
    return (*usual, NEGATIVE) if loss == RANKING and NEGATIVE in there else usual


def losses_for(there: Sequence[str]) -> tuple[tuple[str, ...], str] | None:
    """Return the usual columns of a loss that a table has, and the loss; None where it has none."""
    found = ((columns, loss) for loss, columns in _COLUMNS.items() if set(columns) <= set(there))
    return next(found, None)


def read_groups(path: str, loss: str, columns: Sequence[str], scored: bool) -> Groups:
    """Read labeled texts from a table, or the questions with their paragraphs from SQuAD's JSON.

    Args:
        path: the file.
        loss: the loss that learns them.
        columns: the columns of the texts.
        scored: read the column `score`, too.

    Raises:
        FinepruneError: the file cannot be read, has no such columns, or a cell is not text or no number.
    """
    place = find_file(path)
    suffix = place.suffix.lower()
    check_pairs_in(path, loss)
    if suffix == ".json":
        found, _ = questions_with_paragraphs(place)
        return _cleaned([list(column) for column in zip(*found, strict=True)], None)
    return _of_table(str(path), read_table(place, _wanted(columns, scored)), columns, scored)


def read_group_split(place: tuple[str, str | None, str], columns: Sequence[str], scored: bool) -> Groups:
    """Read the same columns from the hub: `place` is the data set's name, its subset and the split."""
    return _of_table(hub_name(*place), read_hub(*place, _wanted(columns, scored))[0], columns, scored)


def check_pairs_in(path: str, loss: str) -> None:
    """Raise `FinepruneError` for a file that cannot hold what a loss learns, by its name."""
    suffix = Path(path).suffix.lower()
    if suffix == ".json" and loss == COSENT:
        raise FinepruneError(
            f"{path}: SQuAD's JSON has no scores, which task.loss={COSENT} learns; task.loss={RANKING} "
            "learns its questions and paragraphs"
        )
    if suffix not in (".json", *SUFFIXES):
        also = "" if loss == COSENT else ", or SQuAD's .json"
        raise FinepruneError(
            f"{path}: has no pairs of texts, which task.loss={loss} learns; give a table "
            f"({', '.join(SUFFIXES)}){also}, or leave task.loss out"
        )


def _wanted(columns: Sequence[str], scored: bool) -> tuple[str, ...]:
    return (*columns, SCORE) if scored else tuple(columns)


def _of_table(where: str, table: dict[str, list[Any]], columns: Sequence[str], scored: bool) -> Groups:
    texts = [list(text_cells(where, {name: table[name]})) for name in columns]
    scores = differing(where, numbers_of(where, table[SCORE]), "the loss") if scored else None
    return _cleaned(texts, scores)


def _cleaned(columns: Sequence[Sequence[str]], scores: list[float] | None) -> Groups:
    """Return the different rows without white space around their texts; rows with a blank one are dropped."""
    rows = [tuple(text.strip() for text in row) for row in zip(*columns, strict=True)]
    full = [place for place, row in enumerate(rows) if all(row)]
    different = {(rows[place], scores and scores[place]): place for place in reversed(full)}
    places = sorted(different.values())
    return Groups(
        [rows[place] for place in places],
        scores and [scores[place] for place in places],
        len(rows) - len(full),
        len(full) - len(places),
    )
