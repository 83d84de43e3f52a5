"""Sentence embeddings, with labels or without: the `task` section of a recipe, and how it is loaded."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fineprune._messages import choose, listing
from fineprune._text_files import find_file
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.embeddings.data import EmbeddingData
from fineprune.tasks.embeddings.groups import (
    COSENT,
    SCORE,
    Groups,
    check_loss,
    check_pairs_in,
    columns_of,
    losses_for,
    read_group_split,
    read_groups,
)
from fineprune.tasks.embeddings.texts import Texts, read_pairs, read_retrieval, read_split, read_texts
from fineprune.tasks.source import Source, check_text
from fineprune.tasks.tables import SUFFIXES, check_columns, column_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METRICS = ("spearman", "cosine", "neighbors")
"""Those of `metrics.closeness`."""

_HELD_OUT = 0.05
_MOST_HELD_OUT = 1000
_FEWEST = 4
_FEW = 1000

_log = logging.getLogger("fineprune")


@dataclass(frozen=True)
class EmbeddingConfig(Source):
    """Settings of a sentence encoder that learns from its dense model; the data are texts.

    Files are texts, one a line (.txt), columns of a table, or SQuAD's JSON. Without `validation`, the last
    1,000 different texts are held out, of fewer than 20,000 the last 5 %. With `loss`, the training data are
    labeled, and that loss joins the dense model's.
    """

    own_teacher: ClassVar[bool] = True

    kind: str = "embedding"
    text: str | tuple[str, ...] = "text"
    """The column of a table with the texts, or several; with `loss`, those of a row in their order."""

    metric: str = "spearman"
    """The main one of spearman, cosine and neighbors, by which embeddings are near to the dense model's."""

    sts: str | None = None
    """A table with the columns sentence1, sentence2 and score, to score both models at the end."""

    retrieval: str | None = None
    """SQuAD's JSON, or a table with the columns query and text, to score a search by both models."""

    loss: str | None = None
    """A loss of sentence-transformers for labeled training data, by the rows of a batch. "cosent": a table
    with the columns sentence1, sentence2 and score (CoSENTLoss). "ranking": a table with the columns query,
    text and, if there is one, negative, or SQuAD's JSON (MultipleNegativesRankingLoss). None: no labels."""

    matryoshka: tuple[int, ...] = ()
    """Sizes of embeddings, such as [384, 128]: `loss` compares the first numbers of the embeddings, too
    (MatryoshkaLoss)."""

    def check(self) -> None:
        """Raise `FinepruneError` for columns, a loss or a metric that cannot work."""
        if not isinstance(self.columns, tuple) or not self.columns:
            raise FinepruneError(f"task: text is {self.text!r}, expected the name of a column, or a list")
        for column in self.columns:
            check_text("text", column)
        for name in ("sts", "retrieval"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        choose(self.metric, METRICS, "task.metric")
        check_loss(self.loss, self._given, self.matryoshka)

    @property
    def own_loss(self) -> bool:
        return self.loss is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table that hold texts."""
        return (self.text,) if isinstance(self.text, str) else self.text

    def files(self) -> tuple[str, ...]:
        """Return the files of the data; those to score on as well."""
        return (*super().files(), *(place for place in (self.sts, self.retrieval) if place is not None))

    def check_files(self) -> None:
        """Raise `FinepruneError` for files that are not there or lack columns; reads one line of each."""
        tables: list[tuple[str | None, tuple[str, ...]]] = []
        for place in (self.train, self.validation):
            if place is not None:
                self.named_file(place)
                learned = place == self.train
                if learned and self.loss is not None:
                    check_pairs_in(place, self.loss)
                scored = (SCORE,) if learned and self.loss == COSENT else ()
                tables.append((place, (*self._columns_in(place), *scored)))
        tables.append((self.sts, ("sentence1", "sentence2", "score")))
        tables.append((self.retrieval, ("query", "text")))
        for place, columns in tables:
            if place is None:
                continue
            file = self.named_file(place)
            names = column_names(file) if Path(place).suffix.lower() in SUFFIXES else []
            if names:
                check_columns(place, columns, names)

    def load(self, need_train: bool = True, model: "PreTrainedModel | None" = None) -> EmbeddingData:
        """Read the texts; `model` does not matter.

        Raises:
            FinepruneError: a file cannot be read, or there are too few texts.
        """
        train, held_out = self._texts(need_train)
        groups = self._learned(held_out) if self.loss is not None and need_train else None
        count = len(groups.rows if groups is not None else train.texts if train is not None else [])
        if need_train and count < _FEW:
            warnings.warn(
                f"{self.train or self.hub}: has {count} different {'texts' if groups is None else 'rows'} to "
                "learn from; give thousands, of the kind that the model is for",
                FinepruneWarning,
                stacklevel=2,
            )
        return EmbeddingData(
            train if need_train else None,
            held_out,
            self.metric,
            None if self.sts is None else read_pairs(self.sts),
            None if self.retrieval is None else read_retrieval(self.retrieval),
            groups,
            self.loss if need_train else None,
            self.matryoshka,
        )

    def _learned(self, held_out: Sequence[str]) -> Groups:
        """Return the labeled texts, without rows that have a text to score on."""
        place = str(self.train if self.hub is None else self.train_split)
        read = self._groups(place, self.loss == COSENT)
        found = read.without(held_out)
        _check_number(f"{place} without the texts to score on", found.rows, what="row")
        if len(found.rows) < len(read.rows):
            dropped = len(read.rows) - len(found.rows)
            _log.info("%s: %d rows with a text to score on are left out", place, dropped)
        return found

    def _groups(self, place: str, scored: bool = False) -> Groups:
        loss = str(self.loss)
        return self.read(
            place,
            lambda path: read_groups(path, loss, self._columns_in(path), scored),
            lambda *split: read_group_split(split, columns_of(loss, self._given, ()), scored),
        )

    @property
    def _given(self) -> tuple[str, ...] | None:
        """The columns that a recipe with a loss names; None for the usual ones."""
        return None if self.text == type(self).text else self.columns

    def _columns_in(self, path: str) -> tuple[str, ...]:
        """Return the columns of the texts in a file; which are there may decide.

        Raises:
            FinepruneError: the file has pairs, and nothing says what to do with them.
        """
        names = column_names(find_file(path)) if Path(path).suffix.lower() in SUFFIXES else []
        if self.loss is not None:
            return columns_of(self.loss, self._given, names)
        if self.text == type(self).text and (fit := losses_for(names)):
            columns, loss = fit
            if self.text in columns or self.text not in names:
                alone = f" (task.text='[{self.text}]' from that column)" if self.text in columns else ""
                raise FinepruneError(
                    f"{path}: has the columns {listing(columns)}; task.loss={loss} learns from pairs, and "
                    f"task.text='[{', '.join(columns)}]' from the texts alone{alone}"
                )
        return self.columns

    def _texts(self, need_train: bool) -> tuple[Texts | None, list[str]]:
        """Return the texts to learn from, and different ones to score on."""
        place = self.train if self.hub is None else self.train_split
        given = self.validation if self.hub is None else self.validation_split
        if need_train and place is None:
            raise FinepruneError("task: no training data; give a `train` file")
        if given is None:
            return self._split(str(place))
        held_out = self._read(given).texts
        _check_number(given, held_out)
        if len(held_out) > _MOST_HELD_OUT:  # closeness compares all pairs of them
            _log.info("%s: %d evenly spaced texts of %d are scored", given, _MOST_HELD_OUT, len(held_out))
            held_out = [held_out[i * len(held_out) // _MOST_HELD_OUT] for i in range(_MOST_HELD_OUT)]
        if not need_train or place is None:
            return None, held_out
        read, known = self._read(place), set(held_out)
        texts = [text for text in read.texts if text not in known]
        _check_number(f"{place} without the texts of {given}", texts)
        return Texts(texts, read.blank, read.repeated + len(read.texts) - len(texts)), held_out

    def _split(self, place: str) -> tuple[Texts, list[str]]:
        read = self._read(place)
        _check_number(place, read.texts, 2 * _FEWEST)
        last = max(_FEWEST, min(_MOST_HELD_OUT, round(_HELD_OUT * len(read.texts))))
        return read._replace(texts=read.texts[:-last]), read.texts[-last:]

    def _read(self, place: str) -> Texts:
        if self.loss is not None and Path(place).suffix.lower() != ".txt":
            read = self._groups(place).texts
        else:
            read = self.read(
                place,
                lambda path: read_texts(path, self._columns_in(path)),
                lambda *split: read_split(split, self.columns),
            )
        if read.blank or read.repeated:
            _log.info("%s: %d blank texts and %d repeated ones are dropped", place, read.blank, read.repeated)
        return read

    def _check_files(self) -> None:
        if self.validation is None and self.train is not None:
            return  # some texts of `train` are held out
        super()._check_files()


def _check_number(where: str, found: Sequence[object], fewest: int = _FEWEST, what: str = "text") -> None:
    if len(found) < fewest:
        raise FinepruneError(
            f"{where}: {len(found)} different {what}{'' if len(found) == 1 else 's'}; at least {fewest} are "
            "needed to learn from and compare, and thousands to keep much of the dense model"
        )
