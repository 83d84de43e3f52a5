"""Texts without labels, as rows for a trainer; the dense model's embeddings are their labels."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune.errors import FinepruneWarning
from fineprune.tasks.data import Evaluation, Further
from fineprune.tasks.embeddings.texts import Pairs, Retrieval, Texts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EmbeddingData:
    """A task with its data read."""

    kind: ClassVar[str] = "embedding"
    train: Texts | None
    validation: list[str]
    metric: str
    sts: Pairs | None = None
    retrieval: Retrieval | None = None

    def sizes(self) -> dict[str, int]:
        """Return the number of texts in "train" and "validation", of dropped ones, and of further sets."""
        train = self.train or Texts([])
        others = {
            "blank": train.blank,
            "repeated": train.repeated,
            "sts": 0 if self.sts is None else len(self.sts.scores),
            "retrieval": 0 if self.retrieval is None else len(self.retrieval.queries),
        }
        sizes = {"train": len(train.texts), "validation": len(self.validation)}
        return sizes | {name: count for name, count in others.items() if count}

    def head(self) -> dict[str, Any]:
        """Return no settings: the model has no head."""
        return {}

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """Return the training texts as token ids, in order; warn if many are cut."""
        if self.train is None:
            return None
        rows, cut = encode(self.train.texts, tokenizer, max_length)
        if cut:
            warnings.warn(
                f"{cut:,} of {len(rows):,} training texts have more than {max_length} tokens, and are cut "
                "there; training.max_length sets it",
                FinepruneWarning,
                stacklevel=2,
            )
        return rows

    def evaluation(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Evaluation:
        """Return the texts that were held out, in order of length, and pairs and searches as further sets."""
        from fineprune.tasks.embeddings.metrics import closeness, of_pairs, of_retrieval  # imports numpy

        more: dict[str, Further] = {}
        if self.sts is not None:
            rows, places = _sorted([*self.sts.first, *self.sts.second], tokenizer, max_length)
            more["sts"] = Further(rows, of_pairs(self.sts, places))
        if self.retrieval is not None:
            rows, places = _sorted([*self.retrieval.queries, *self.retrieval.texts], tokenizer, max_length)
            more["retrieval"] = Further(rows, of_retrieval(self.retrieval, places))
        rows, _ = _sorted(self.validation, tokenizer, max_length)
        return Evaluation(rows, closeness, more)

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Return the function that pads each batch to its longest text."""
        from transformers import DataCollatorWithPadding

        collate: Callable[[list[Any]], Any] = DataCollatorWithPadding(tokenizer)
        return collate


def encode(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "tuple[Dataset, int]":
    """Return token ids of at most `max_length` for each text, not padded, and how many texts were cut."""
    from datasets import Dataset

    columns = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)
    cut = sum(bool(found.overflowing) for found in columns.encodings or ())
    return Dataset.from_dict(dict(columns)), cut


def _sorted(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "tuple[Dataset, list[int]]":
    """Return each different text as a row, in order of length, and the row of each of `texts`."""
    different = list(dict.fromkeys(texts))
    rows, _ = encode(different, tokenizer, max_length)
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    places = {different[number]: place for place, number in enumerate(order)}
    return rows.select(order), [places[text] for text in texts]
