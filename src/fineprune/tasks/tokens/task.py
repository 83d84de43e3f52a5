"""Token classification, such as named entities: a tag for each word, scored as seqeval scores entities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fineprune._messages import choose, listing
from fineprune.errors import FinepruneError
from fineprune.tasks.data import warn_of_leak, warn_of_near_labels
from fineprune.tasks.model_config import labels_of
from fineprune.tasks.source import Source, check_labels, check_text
from fineprune.tasks.tokens.data import Tagged, TokenClassificationData
from fineprune.tasks.tokens.files import (
    TABLES,
    Sentence,
    check_form,
    columns_in,
    read_hub_sentences,
    read_sentences,
)
from fineprune.tasks.tokens.metrics import METRICS
from fineprune.tasks.tokens.tags import infer_tags, tag_ids
from fineprune_runtime.entities import are_entities

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenClassificationConfig(Source):
    """Settings of a tagging task.

    Files are CoNLL (a word and its tag a line, a blank line between sentences) or tables (JSONL, Parquet).
    """

    kind: str = "token_classification"
    words: str | int | None = None
    """The column of the words: in CoNLL files a number from 0 (None: the first), else a name (None:
    `tokens`)."""

    tags: str | int | None = None
    """The column of the tags: in CoNLL files a number (None: the last), else a name (None: `ner_tags` or
    `tags`)."""

    labels: tuple[str, ...] | None = None
    """The tags in the order of their numbers; None: inferred from the training data."""

    metric: str | None = None
    """The main one of f1, precision, recall (of entities) and accuracy (of words).

    None: f1 where the tags are of entities (B-PER, I-PER, ... and O), else accuracy.
    """

    def check(self) -> None:
        """Raise `FinepruneError` for columns, labels or a metric that cannot work."""
        for name in ("words", "tags"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (value is None or isinstance(value, int)):
                check_text(name, value)
        check_labels(self.labels)
        if self.metric is not None:
            choose(self.metric, METRICS, "task.metric")

    def load(
        self, need_train: bool = True, model: "PreTrainedModel | None" = None
    ) -> TokenClassificationData:
        """Read the data.

        The tags come from the first of these that there is: the trained `model`, `labels`, the names of a
        hub data set, the training data.

        Raises:
            FinepruneError: with file and line where there is one: no training data while `need_train`, a
                tag that is missing or not known, only one tag.
        """
        train_place, validation_place = self.places(need_train)
        train, named = (None, None) if train_place is None else self._read(train_place)
        validation, hub_names = self._read(validation_place)
        labels = self._labels_of(model) if model is not None else self.labels or named or hub_names
        if labels is None:
            if train is None:
                raise FinepruneError("task: the tags are not known without training data; give `labels`")
            labels = infer_tags(train)
        tagged = None
        if train is not None:
            tagged = _tagged(train, tag_ids(train, labels, named))
            if len({tag for sentence in tagged.tags for tag in sentence}) < 2:
                raise FinepruneError(f"{train[0].place}: every word has the same tag; two or more are needed")
        scored = _tagged(validation, tag_ids(validation, labels, hub_names))
        if tagged is not None and train_place != validation_place:
            warn_of_near_labels(str(train_place), labels)
            warn_of_leak(validation_place, map(tuple, tagged.words), list(map(tuple, scored.words)))
        return TokenClassificationData(tagged, scored, labels, self._main_metric(labels))

    def check_files(self) -> None:
        """Raise `FinepruneError` for files that are not there, of another form, or lack columns."""
        for place in self.files():
            check_form(place, self.words, self.tags)
        super().check_files()

    def wanted_columns(self, place: str) -> tuple[str, ...]:
        """Return the columns of words and tags of a table; none of a CoNLL file."""
        table = Path(place).suffix.lower() in TABLES
        named = not isinstance(self.words, int) and not isinstance(self.tags, int)  # else the reader refuses
        return columns_in(place, self.words, self.tags) if table and named else ()

    def _read(self, place: str) -> tuple[list[Sentence], tuple[str, ...] | None]:
        """Return the sentences, and the names of the tags where the hub has them."""
        return self.read(
            place,
            lambda path: (read_sentences(path, self.words, self.tags), None),
            lambda *split: read_hub_sentences(split, self.words, self.tags),
        )

    def _labels_of(self, model: "PreTrainedModel") -> tuple[str, ...]:
        labels = labels_of(model)
        if self.labels is not None and self.labels != labels:
            raise FinepruneError(
                f"task: labels is {list(self.labels)} but the model has {listing(labels)}; remove labels"
            )
        return labels

    def _main_metric(self, labels: Sequence[str]) -> str:
        if are_entities(labels):
            return self.metric or "f1"
        if self.metric not in (None, "accuracy"):
            plain = next(tag for tag in labels if not are_entities([tag]))
            raise FinepruneError(
                f"task: metric {self.metric!r} is of entities, but the tag {plain!r} is neither O "
                "nor B-, I-, E- or S- with a type; use accuracy"
            )
        return "accuracy"


def _tagged(sentences: Sequence[Sentence], tags: list[list[int]]) -> Tagged:
    return Tagged([sentence.words for sentence in sentences], tags)
