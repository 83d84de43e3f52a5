"""Classification of single texts and of pairs: the `task` section of a recipe, and what it becomes.

Regression, as in STS-B, is the same task with one output. The data is read in `loading`, what the
cells of the label column mean is decided in `labels`, the score in `metrics`, the head in `modeling`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune._messages import listing, near
from fineprune._validation import check_keys
from fineprune.errors import FinepruneError
from fineprune.tasks.text.metrics import CLASSES, REGRESSION, compute_metrics

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

_DEFAULTS: dict[str, Any] = {"train_split": "train", "validation_split": "validation"}


@dataclass(frozen=True)
class ClassificationConfig:
    """Where the texts and labels of a task are. Raises `FinepruneError` for contradictions.

    `train`, `validation`: local files (TSV, CSV, JSONL, Parquet). Or `hub`, `subset` and two
    splits: a data set on the Hugging Face hub. `text`: the column of the text, or the two
    columns of a pair. `label`: the column of the label. `labels`: the class names in the order of
    their numbers; None: found in the training data. `metric`: the main one of accuracy, f1,
    matthews (classes), pearson, spearman (regression); None: accuracy or pearson. `more`: further
    validation files (or splits of the hub's data set) by name; of "mismatched" the scores are
    `mismatched_accuracy` and so on.
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
    more: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("text", "labels"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_types()
        check_source(self)
        self._check_columns()
        self._check_metric()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassificationConfig":
        """Make one from the `task` section of a recipe; unknown settings are errors."""
        check_keys(values, [setting.name for setting in fields(cls)], "task")
        return cls(**values)

    def load(self, need_train: bool = True, model: "PreTrainedModel | None" = None) -> "ClassificationData":
        """Read the data (`loading.load_data`); a trained model says what the labels mean."""
        from fineprune.tasks.modeling import known_labels
        from fineprune.tasks.text.reading import load_data

        if model is None:
            return load_data(self, need_train)
        names = known_labels(model)
        return load_data(self, need_train, labels=names, regression=names is None)

    def with_validation(self, path: str) -> "ClassificationConfig":
        """The same task scored on another file, without training data."""
        nowhere: dict[str, Any] = {"train": None, "hub": None, "subset": None, "more": None}
        return replace(self, validation=path, **nowhere, **_DEFAULTS)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values for YAML or JSON; `from_dict` makes an equal config of them."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        if self.more is not None:
            values["more"] = dict(self.more)
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
                check_text(name, getattr(self, name))
        for name in ("train_split", "validation_split", "label"):
            check_text(name, getattr(self, name))
        for name, value in (("text", self.columns), ("labels", self.labels or ())):
            if not isinstance(value, tuple):
                raise FinepruneError(f"task: {name} is {value!r}, expected a list of names")
            for item in value:
                check_text(name, item)
        if self.more is not None:
            self._check_more()

    def _check_more(self) -> None:
        if not isinstance(self.more, Mapping):
            raise FinepruneError(f"task: more is {self.more!r}, expected names and files (or splits)")
        for name, place in self.more.items():
            if not isinstance(name, str) or not name.isidentifier() or name in _DEFAULTS.values():
                raise FinepruneError(
                    f"task: more names a set {name!r}, expected letters, digits and _, and not "
                    f"{' or '.join(_DEFAULTS.values())}"
                )
            check_text(f"more.{name}", place)

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

    `labels` are class ids, or values for regression; None: not labeled. All have one length.
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
    more: Mapping[str, Examples] = field(default_factory=dict)
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

    def sizes(self) -> dict[str, int]:
        """Rows in "train", "validation" and each further validation set."""
        return {"train": len(self.train or ()), "validation": len(self.validation)} | {
            name: len(examples) for name, examples in self.more.items()
        }

    def head(self) -> dict[str, Any]:
        """The labels, or one output for regression, as settings of the model's config."""
        if self.labels is None:
            return {"num_labels": 1, "problem_type": "regression"}
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """The training texts as token ids, in order."""
        return None if self.train is None else encode(self.train, tokenizer, max_length)

    def validation_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
        """The validation texts in order of length: metrics do not mind, and batches need little padding."""
        return by_length(encode(self.validation, tokenizer, max_length))

    def more_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "dict[str, Dataset]":
        """The further validation sets, in the form of `validation_rows`."""
        return {
            name: by_length(encode(examples, tokenizer, max_length)) for name, examples in self.more.items()
        }

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Pads each batch to its longest text."""
        from transformers import DataCollatorWithPadding

        padded: Callable[[list[Any]], Any] = DataCollatorWithPadding(tokenizer)
        return padded

    def compute_metrics(self) -> "Callable[[EvalPrediction], dict[str, float]]":
        """Accuracy, F1 and Matthews, or Pearson and Spearman (`metrics.compute_metrics`)."""
        return compute_metrics(None if self.labels is None else len(self.labels))


def encode(examples: Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
    """Tokenize into a data set in memory, one row an example, in order.

    Columns: `input_ids`, `attention_mask`, whatever else the tokenizer makes (`token_type_ids`),
    each a list of at most `max_length` integers, and `labels` where there are any. Nothing is
    padded. Of a pair, the longer text is cut first.
    """
    from datasets import Dataset

    columns = tokenize(examples.texts, examples.pairs, tokenizer, max_length)
    if examples.labels is not None:
        columns["labels"] = examples.labels
    return Dataset.from_dict(columns)


def tokenize(
    texts: list[str], pairs: list[str] | None, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict[str, Any]:
    """The tokenizer's columns, cut and not padded."""
    return dict(tokenizer(texts, pairs, truncation="longest_first", max_length=max_length, padding=False))


def by_length(encoded: "Dataset") -> "Dataset":
    """The rows from the shortest to the longest."""
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return encoded.select(sorted(range(len(lengths)), key=lengths.__getitem__))


def check_source(config: Any) -> None:
    """Raise unless a config names files, or a data set on the hub, and not both."""
    if config.hub is not None:
        for name in ("train", "validation"):
            if getattr(config, name) is not None:
                raise FinepruneError(
                    f"task: {name} is the file {getattr(config, name)!r} and hub is {config.hub!r}; "
                    "give files or a data set on the hub, not both"
                )
        return
    if config.train is None and config.validation is None:
        raise FinepruneError("task: no data; give the files `train` and `validation`, or a data set as `hub`")
    if config.validation is None:
        raise FinepruneError(f"task: train is {config.train!r} but there is no `validation` file to score on")
    for name, default in ({"subset": None} | _DEFAULTS).items():
        if getattr(config, name) != default:
            raise FinepruneError(
                f"task: {name} is {getattr(config, name)!r} but belongs to `hub`, which is not set"
            )


def check_text(name: str, value: Any) -> None:
    """Raise unless a setting is text, and not empty."""
    if not isinstance(value, str) or not value:
        raise FinepruneError(
            f"task: {name} is {value!r}, expected text (in YAML, put 0, yes and no in quotes)"
        )
