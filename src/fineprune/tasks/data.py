"""The data of a task, read and checked: the same for a trainer, whatever the kind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """Validation rows, and the function that scores predictions on them.

    Both are made together, because the function may count on the order of the rows.
    """

    rows: "Dataset"
    """Token ids with labels, not padded."""

    compute_metrics: "Callable[[EvalPrediction], dict[str, float]]"
    """Return scores as fractions, for a `transformers.Trainer`."""

    more: "dict[str, Dataset]" = field(default_factory=dict)
    """Further validation sets by name, which the same function scores."""


class TaskData(Protocol):
    """A task with its data read."""

    kind: ClassVar[str]
    """The name in the table of kinds."""

    @property
    def metric(self) -> str:
        """The main one of the names that the evaluation's scores have; higher is better."""

    def sizes(self) -> dict[str, int]:
        """Return the number of examples in "train" and "validation"."""

    def head(self) -> dict[str, Any]:
        """Return the settings of a model's config that the head needs, such as the labels."""

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """Return the training data as token ids with labels, not padded; None where there is none."""

    def evaluation(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Evaluation:
        """Return the validation data as rows of at most `max_length` tokens, and their scores."""

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Return the function that makes a padded batch of rows."""


def by_length(rows: "Dataset") -> "Dataset":
    """Return the rows from the shortest to the longest, so that batches need little padding."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    return rows.select(sorted(range(len(lengths)), key=lengths.__getitem__))
