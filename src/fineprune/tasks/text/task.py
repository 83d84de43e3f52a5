"""Classification of single texts and of pairs: the `task` section of a recipe, and how it is loaded.

Regression, as in STS-B, is the same task with one output. `reading` reads the data, `labels` gives the
cells of the label column their meaning, `metrics` scores predictions.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune._messages import choose, listing
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.data import warn_of_leak, warn_of_near_labels, warn_of_unknown_labels
from fineprune.tasks.model_config import is_regression, labels_of, problem_of
from fineprune.tasks.source import Source, check_labels, check_text
from fineprune.tasks.tables import check_suffix, column_names
from fineprune.tasks.text import labels as label_rules
from fineprune.tasks.text.data import ClassificationData
from fineprune.tasks.text.metrics import CLASSES, REGRESSION
from fineprune.tasks.text.reading import LabeledTexts, read_file, read_split

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ClassificationConfig(Source):
    """Settings of a classification or regression; files are TSV, CSV, JSONL or Parquet."""

    kind: str = "classification"
    text: str | tuple[str, ...] = "text"
    """The column of the text, or the two columns of a pair."""

    label: str = "label"
    """The column of the label."""

    labels: tuple[str, ...] | None = None
    """The class names in the order of their numbers; None: inferred from the training data."""

    metric: str | None = None
    """The main one of accuracy, f1, matthews (classes), pearson, spearman (regression).

    None: accuracy or pearson.
    """

    more: Mapping[str, str] | None = None
    """Further validation files (or splits of the hub's data set) by name.

    The scores on "mismatched" are `mismatched_accuracy` and so on.
    """

    def check(self) -> None:
        """Raise `FinepruneError` for columns, labels, a metric or further sets that cannot work."""
        check_text("label", self.label)
        self._check_columns()
        check_labels(self.labels)
        if self.metric is not None:
            choose(self.metric, CLASSES + REGRESSION, "task.metric")
        if self.metric in REGRESSION and self.labels is not None:
            raise FinepruneError(
                f"task: metric {self.metric!r} is for regression but labels names classes "
                f"{listing(self.labels)}; remove one"
            )
        if self.more is not None:
            self._check_more(self.more)

    def load(self, need_train: bool = True, model: "PreTrainedModel | None" = None) -> ClassificationData:
        """Read the data.

        The meaning of the labels comes from the first of these that there is: the trained `model`, a metric
        of regression, `labels`, the names of a hub data set, the training data (`labels.infer_labels`).

        Raises:
            FinepruneError: with file and row where there is one: no training data while `need_train`, a
                text that is not text, a label that is missing or unknown, training data with one label
                only, unknown labels without training data, settings that contradict the trained model.
        """
        train_place, validation_place = self.places(need_train)
        train = None if train_place is None else self._read(train_place)
        validation = self._read(validation_place)
        more = {name: self._read(place) for name, place in (self.more or {}).items()}
        if model is not None:
            labels = self._labels_of(model)
        else:
            labels = self._labels_in(train or validation, train is not None)
        examples = None if train is None else train.examples(labels)
        if train is not None and examples is not None and len(set(examples.labels or ())) < 2:
            raise FinepruneError(
                f"{train.where}: every row has the label {train.cells[0]!r}; two or more are needed"
            )
        data = ClassificationData(
            examples,
            validation.examples(labels),
            labels,
            self.metric or ("pearson" if labels is None else "accuracy"),
            {name: texts.examples(labels) for name, texts in more.items()},
        )
        if data.train is not None and train_place != validation_place:
            self._warn(data, str(train_place), validation_place)
        return data

    def files(self) -> tuple[str, ...]:
        """Return the files of the data, further validation sets among them."""
        return () if self.hub is not None else (*super().files(), *(self.more or {}).values())

    def check_files(self) -> None:
        """Raise `FinepruneError` for files that are not there, no tables, or lack columns."""
        for place in self.files():
            check_suffix(Path(place))
        super().check_files()
        if self.train is not None and (second := self._second_text(column_names(Path(self.train)))):
            warnings.warn(
                f"{self.train}: the column {second!r} is not read; for pairs of texts, set "
                f"'task.text=[{self.text},{second}]'",
                FinepruneWarning,
                stacklevel=2,
            )

    def wanted_columns(self, place: str) -> tuple[str, ...]:
        """Return the columns of text and labels."""
        return (*self.columns, self.label)

    @property
    def columns(self) -> tuple[str, ...]:
        """The one or two columns of text."""
        return (self.text,) if isinstance(self.text, str) else self.text

    def _warn(self, data: ClassificationData, train: str, validation: str) -> None:
        """Warn of labels that are probably one or cannot be learned, and of texts that are in both places."""
        assert data.train is not None
        if data.labels is not None:
            warn_of_near_labels(train, data.labels)
            ids = (map(int, examples.labels or ()) for examples in (data.train, data.validation))
            warn_of_unknown_labels(validation, data.labels, *ids)
        warn_of_leak(validation, data.train.rows(), list(data.validation.rows()))

    def _second_text(self, there: Sequence[str]) -> str | None:
        """Return the column that makes a pair with the only column of text, by its name."""
        stem = self.text.removesuffix("1") if isinstance(self.text, str) else ""
        pairs = {f"{stem}2", f"{stem}_2", f"{stem}_pair"} - {self.label}
        return next((name for name in there if stem and name in pairs), None)

    def _read(self, place: str) -> LabeledTexts:
        return self.read(
            place,
            lambda path: read_file(path, self.columns, self.label),
            lambda *split: read_split(split, self.columns, self.label),
        )

    def _labels_of(self, model: "PreTrainedModel") -> tuple[str, ...] | None:
        """Return a trained model's labels, None for a regression; raise if the settings contradict it."""
        if problem_of(model) == "labels":
            raise FinepruneError(
                "task: the model gives several labels to a text (problem_type multi_label_classification); "
                "fineprune predicts with such a model, but does not score it"
            )
        labels = None if is_regression(model) else labels_of(model)
        if self.labels is not None and self.labels != labels:
            has = "is a regression" if labels is None else f"has {listing(labels)}"
            raise FinepruneError(f"task: labels is {list(self.labels)} but the model {has}; remove labels")
        allowed = REGRESSION if labels is None else CLASSES
        if self.metric is not None and self.metric not in allowed:
            output = "values" if labels is None else "classes"
            raise FinepruneError(
                f"task: metric {self.metric!r} but the model predicts {output}; allowed: {', '.join(allowed)}"
            )
        return labels

    def _labels_in(self, texts: LabeledTexts, is_train: bool) -> tuple[str, ...] | None:
        """Return the labels by the settings or the data; None for a regression."""
        if self.metric in REGRESSION:
            return None
        if self.labels is not None or texts.names is not None:
            return self.labels or texts.names
        if not is_train:
            raise FinepruneError(
                f"task: the labels of {texts.where} are not known without training data; give `labels`"
            )
        label_rules.check_labels(texts.cells, texts.where)
        labels = label_rules.infer_labels(texts.cells, texts.where)
        if labels is not None:
            return labels
        example = next(cell for cell in texts.cells if isinstance(label_rules.number(cell), float))
        if self.metric is not None:
            raise FinepruneError(
                f"{texts.where}: label {example!r} is a value, not a class, but metric is {self.metric!r}; "
                f"allowed: {', '.join(REGRESSION)}"
            )
        if 1 < len(set(texts.cells)) <= len(texts.cells) / 2:  # as names do: chapters 3.1 and 3.10
            warnings.warn(
                f"{texts.where}: labels such as {example!r} are numbers, so this is a regression; set "
                "task.metric=pearson, or list them as task.labels if they are the names of classes",
                FinepruneWarning,
                stacklevel=2,
            )
        return None

    def _check_columns(self) -> None:
        if not isinstance(self.columns, tuple):
            raise FinepruneError(f"task: text is {self.columns!r}, expected a list of names")
        for column in self.columns:
            check_text("text", column)
        if not 1 <= len(self.columns) <= 2:
            raise FinepruneError(
                f"task: text names {len(self.columns)} columns {list(self.columns)}, allowed: 1 or 2"
            )
        names = [*self.columns, self.label]
        for name in names:
            if names.count(name) > 1:
                raise FinepruneError(f"task: column {name!r} is named twice among text and label")

    def _check_more(self, more: Any) -> None:
        if not isinstance(more, Mapping):
            raise FinepruneError(f"task: more is {more!r}, expected names and files (or splits)")
        for name, place in more.items():
            if not isinstance(name, str) or not name.isidentifier() or name in ("train", "validation"):
                raise FinepruneError(
                    f"task: more names a set {name!r}, expected letters, digits and _, and not "
                    "train or validation"
                )
            check_text(f"more.{name}", place)
