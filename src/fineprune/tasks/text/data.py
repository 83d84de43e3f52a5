"""Texts or pairs with labels, as rows for a trainer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune.tasks.data import Evaluation, Further, by_length
from fineprune.tasks.model_config import label_settings
from fineprune.tasks.text.metrics import compute_metrics

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Examples:
    """Rows of a task; all lists have one length."""

    texts: list[str]
    pairs: list[str] | None = None
    """The second texts of pairs; None: single texts."""

    labels: list[int] | list[float] | None = None
    """Class ids, or values for regression; None: not labeled."""

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the text and the second text, or nothing, of each row."""
        return zip(self.texts, self.pairs or [""] * len(self.texts), strict=True)


@dataclass(frozen=True)
class ClassificationData:
    """A task with its data read."""

    kind: ClassVar[str] = "classification"
    train: Examples | None
    validation: Examples
    labels: tuple[str, ...] | None
    """The class names by id; None for regression."""

    metric: str
    more: Mapping[str, Examples] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """Return the rows in "train", "validation" and each further validation set."""
        return {"train": len(self.train or ()), "validation": len(self.validation)} | {
            name: len(examples) for name, examples in self.more.items()
        }

    def head(self) -> dict[str, Any]:
        """Return the labels, or one output for regression, as settings of the model's config."""
        if self.labels is None:
            return {"num_labels": 1, "problem_type": "regression"}
        return label_settings(self.labels) | {"problem_type": "single_label_classification"}

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """Return the training texts as token ids, in order."""
        return None if self.train is None else encode(self.train, tokenizer, max_length)

    def evaluation(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Evaluation:
        """Return the validation texts in order of length, scored by `metrics.compute_metrics`."""
        rows, *others = (
            by_length(encode(examples, tokenizer, max_length))
            for examples in (self.validation, *self.more.values())
        )
        score = compute_metrics(None if self.labels is None else len(self.labels))
        more = (Further(other, score) for other in others)
        return Evaluation(rows, score, dict(zip(self.more, more, strict=True)))

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Return the function that pads each batch to its longest text."""
        from transformers import DataCollatorWithPadding

        collate: Callable[[list[Any]], Any] = DataCollatorWithPadding(tokenizer)
        return collate


def encode(examples: Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
    """Tokenize into a data set in memory, one row an example, in order, without padding.

    Returns:
        The columns `input_ids`, `attention_mask`, and others that the tokenizer makes (`token_type_ids`),
        each a list of at most `max_length` integers, and `labels` where there are any. The longer text of
        a pair is cut first.
    """
    from datasets import Dataset

    columns = tokenize(examples.texts, examples.pairs, tokenizer, max_length)
    if examples.labels is not None:
        columns["labels"] = examples.labels
    return Dataset.from_dict(columns)


def tokenize(
    texts: list[str], pairs: list[str] | None, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict[str, Any]:
    """Return the tokenizer's columns, cut to `max_length` tokens and not padded."""
    return dict(tokenizer(texts, pairs, truncation="longest_first", max_length=max_length, padding=False))
