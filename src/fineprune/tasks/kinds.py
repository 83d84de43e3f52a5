"""What a run needs to know of a task, whichever kind it is.

A kind of task is a config (the `task` section of a recipe: frozen, checked when made) that loads a
`TaskData`. A new kind is a module with those two and a line in `task_config`.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fineprune._messages import near
from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase


class TaskData(Protocol):
    """A task with its data read."""

    @property
    def metric(self) -> str:
        """The main one of the names that `compute_metrics` returns; higher is better."""

    @property
    def auto_class(self) -> str:
        """Name of transformers' Auto class that gives a model the head of this task."""

    def sizes(self) -> dict[str, int]:
        """Examples in "train" and "validation"."""

    def head(self) -> dict[str, Any]:
        """Settings of the model's config that the head needs, such as the labels."""

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """The training data as token ids with labels, not padded; None where there is none."""

    def validation_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
        """The validation data in the same form, in the order that `compute_metrics` counts on."""

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """What makes a padded batch of rows."""

    def compute_metrics(self) -> "Callable[[EvalPrediction], dict[str, float]]":
        """What scores the predictions on `validation_rows`, as fractions."""


class TaskConfig(Protocol):
    """The `task` section of a recipe."""

    @property
    def kind(self) -> str:
        """What the `task` section calls it."""

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""

    def with_validation(self, path: str) -> "TaskConfig":
        """The same task scored on another file, without training data."""

    def load(self, need_train: bool = True, model: "PreTrainedModel | None" = None) -> TaskData:
        """Read the data; a trained `model` says what the labels mean. Raises `FinepruneError`."""


def more_rows(data: TaskData, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "dict[str, Dataset]":
    """Further validation sets by name, in the form of `validation_rows`, of a task that offers some."""
    offered: dict[str, Dataset] = data.more_rows(tokenizer, max_length) if hasattr(data, "more_rows") else {}
    return offered


def task_config(values: Mapping[str, Any] | str) -> TaskConfig:
    """The config of a `task` section, by its `kind`, or by the `name` of a known task.

    Text is a name, too. Raises `FinepruneError`.
    """
    from fineprune.tasks.named_tasks import expand
    from fineprune.tasks.questions.task import QuestionAnsweringConfig
    from fineprune.tasks.text.task import ClassificationConfig
    from fineprune.tasks.tokens.task import TokenClassificationConfig

    kinds: dict[str, Callable[[Mapping[str, Any]], TaskConfig]] = {
        "classification": ClassificationConfig.from_dict,
        "question_answering": QuestionAnsweringConfig.from_dict,
        "token_classification": TokenClassificationConfig.from_dict,
    }
    if isinstance(values, str):
        values = {"name": values}
    if not isinstance(values, Mapping):
        raise FinepruneError(f"task: expected a mapping of settings, got {values!r}")
    if "name" in values:
        values = expand(values)
    kind = values.get("kind", "classification")
    if kind not in kinds:
        close = near(str(kind), kinds)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise FinepruneError(f"task: kind is {kind!r}; {hint}allowed: {', '.join(kinds)}")
    return kinds[kind](values)
