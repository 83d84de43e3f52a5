"""The data of a task, read and checked: the same for a trainer, whatever the kind."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from fineprune._messages import listing
from fineprune.errors import FinepruneWarning

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase


class Further(NamedTuple):
    """A further validation set, and the function that scores predictions on it."""

    rows: "Dataset"
    compute_metrics: "Callable[[EvalPrediction], dict[str, float]]"


@dataclass(frozen=True)
class Evaluation:
    """Validation rows, and the function that scores predictions on them.

    Both are made together, because the function may count on the order of the rows.
    """

    rows: "Dataset"
    """Token ids with labels, not padded."""

    compute_metrics: "Callable[[EvalPrediction], dict[str, float]]"
    """Return scores as fractions, for a `transformers.Trainer`."""

    more: dict[str, Further] = field(default_factory=dict)
    """Further validation sets by name, scored at the end of a run."""

    dense: dict[str, float] | None = None
    """The scores of the dense model, where its answers are the labels."""


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


_LEAK = 0.05  # of the validation data; real data sets repeat some short texts
_LEAKED_ROWS = 10


def warn_of_leak(where: str, train: Iterable[object], validation: Sequence[object]) -> None:
    """Warn where a good part of the validation data is in the training data as well.

    Args:
        where: the name of the validation data in the message.
        train: the training data, such that equal rows are equal values with a hash.
        validation: the validation data, likewise.
    """
    known = set(train)
    seen = sum(row in known for row in validation)
    if seen >= max(_LEAKED_ROWS, _LEAK * len(validation)):
        warnings.warn(
            f"{where}: {seen} of {len(validation)} rows ({seen / len(validation):.0%}) are in the training "
            "data, too, so the scores are too good; remove them from one",
            FinepruneWarning,
            stacklevel=2,
        )


def warn_of_near_labels(where: str, labels: Sequence[str]) -> None:
    """Warn where labels differ only in case or in blanks around them: probably they are meant to be one."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(label.strip().casefold(), []).append(label)
    for group in alike.values():
        if len(group) > 1:
            warnings.warn(
                f"{where}: the labels {listing(group)} differ only in case or blanks and are classes of "
                "their own; write them alike if they are one",
                FinepruneWarning,
                stacklevel=2,
            )


def warn_of_unknown_labels(
    where: str, labels: Sequence[str], train: Iterable[int], found: Iterable[int]
) -> None:
    """Warn where the validation data have labels that no training row has; both are given as ids."""
    missing = sorted(set(found) - set(train))
    if missing:
        warnings.warn(
            f"{where}: no training row has the label {listing(labels[index] for index in missing)}, so the "
            "model cannot learn it; check the files",
            FinepruneWarning,
            stacklevel=2,
        )
