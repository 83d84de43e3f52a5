"""Classification of single texts and of pairs: the `task` section of a recipe, and what it becomes.

Regression, as in STS-B, is the same task with one output. The data is read in `loading`, what the
cells of the label column mean is decided in `labels`, the score in `metrics`, the head in `modeling`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fineprune._reason import listing
from fineprune._strict import check_keys, near
from fineprune.errors import FinepruneError
from fineprune.tasks.metrics import CLASSES, REGRESSION

_SPLITS = {"train_split": "train", "validation_split": "validation"}


@dataclass(frozen=True)
class ClassificationConfig:
    """Where the texts and labels of a task are. Raises `FinepruneError` for contradictions.

    `train`, `validation`: local files (TSV, CSV, JSONL, Parquet). Or `hub`, `subset` and two
    splits: a data set on the Hugging Face hub. `text`: the column of the text, or the two
    columns of a pair. `label`: the column of the label. `labels`: the class names in the order of
    their numbers; None: found in the training data. `metric`: the main one of accuracy, f1,
    matthews (classes), pearson, spearman (regression); None: accuracy or pearson.
    """

    kind: str = "classification"
    train: str | None = None
    validation: str | None = None
    hub: str | None = None
    subset: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    text: str | tuple[str, ...] = "text"
    label: str = "label"
    labels: tuple[str, ...] | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        for name in ("text", "labels"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_types()
        self._check_source()
        self._check_columns()
        self._check_metric()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassificationConfig":
        """Make one from the `task` section of a recipe; unknown settings are errors."""
        check_keys(values, [setting.name for setting in fields(cls)], "task")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values for YAML or JSON; `from_dict` makes an equal config of them."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """The one or two columns of text."""
        return (self.text,) if isinstance(self.text, str) else self.text

    def _check_types(self) -> None:
        if self.kind != "classification":
            raise FinepruneError(f"task: kind is {self.kind!r}, expected 'classification'")
        for name in ("train", "validation", "hub", "subset", "metric"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        for name in ("train_split", "validation_split", "label"):
            _check_text(name, getattr(self, name))
        for name, value in (("text", self.columns), ("labels", self.labels or ())):
            if not isinstance(value, tuple):
                raise FinepruneError(f"task: {name} is {value!r}, expected a list of names")
            for item in value:
                _check_text(name, item)

    def _check_source(self) -> None:
        if self.hub is not None:
            for name in ("train", "validation"):
                if getattr(self, name) is not None:
                    raise FinepruneError(
                        f"task: {name} is the file {getattr(self, name)!r} and hub is {self.hub!r}; "
                        "give files or a data set on the hub, not both"
                    )
            return
        if self.train is None and self.validation is None:
            raise FinepruneError(
                "task: no data; give the files `train` and `validation`, or a data set as `hub`"
            )
        if self.validation is None:
            raise FinepruneError(
                f"task: train is {self.train!r} but there is no `validation` file to score on"
            )
        for name, default in ({"subset": None} | _SPLITS).items():
            if getattr(self, name) != default:
                raise FinepruneError(
                    f"task: {name} is {getattr(self, name)!r} but belongs to `hub`, which is not set"
                )

    def _check_columns(self) -> None:
        if not 1 <= len(self.columns) <= 2:
            raise FinepruneError(
                f"task: text names {len(self.columns)} columns {list(self.columns)}, allowed: 1 or 2"
            )
        names = [*self.columns, self.label]
        for name in names:
            if names.count(name) > 1:
                raise FinepruneError(f"task: column {name!r} is named twice among text and label")
        if self.labels is not None and len(self.labels) < 2:
            raise FinepruneError(f"task: labels is {list(self.labels)}, expected two or more names")
        for name in self.labels or ():
            if self.labels is not None and self.labels.count(name) > 1:
                raise FinepruneError(f"task: labels has {name!r} twice")

    def _check_metric(self) -> None:
        allowed = CLASSES + REGRESSION
        if self.metric is not None and self.metric not in allowed:
            close = near(self.metric, allowed, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise FinepruneError(f"task: unknown metric {self.metric!r}; {hint}allowed: {', '.join(allowed)}")
        if self.metric in REGRESSION and self.labels is not None:
            raise FinepruneError(
                f"task: metric {self.metric!r} is for regression but labels names classes "
                f"{listing(self.labels)}; remove one"
            )


@dataclass(frozen=True)
class Examples:
    """Rows of a task: `texts`, their `pairs` (None: single texts), and `labels`.

    `labels` are class ids, or values for regression; None: not labelled. All have one length.
    """

    texts: list[str]
    pairs: list[str] | None = None
    labels: list[int] | list[float] | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class ClassificationData:
    """A task with its data read: `labels` are the class names by id, None for regression."""

    train: Examples | None
    validation: Examples
    labels: tuple[str, ...] | None
    metric: str


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise FinepruneError(
            f"task: {name} is {value!r}, expected text (in YAML, put 0, yes and no in quotes)"
        )
