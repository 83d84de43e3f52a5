"""Texts as rows for a trainer: without labels, where the dense model's embeddings are those, or with."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune.errors import FinepruneWarning
from fineprune.tasks.data import Evaluation, Further
from fineprune.tasks.embeddings.groups import RANKING, Groups
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
    groups: Groups | None = None
    """Labeled texts to learn from, in the place of `train`."""

    loss: str | None = None
    """What learns them."""

    matryoshka: tuple[int, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Return the number of texts in "train" and "validation", of dropped ones, and of further sets."""
        train = self.groups or self.train or Texts([])
        others = {
            "blank": train.blank,
            "repeated": train.repeated,
            "sts": 0 if self.sts is None else len(self.sts.scores),
            "retrieval": 0 if self.retrieval is None else len(self.retrieval.queries),
        }
        count = len(train.texts if isinstance(train, Texts) else train.rows)
        sizes = {"train": count, "validation": len(self.validation)}
        return sizes | {name: count for name, count in others.items() if count}

    def head(self) -> dict[str, Any]:
        """Return no settings: the model has no head."""
        return {}

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """Return the training texts as token ids, in order; warn if many are cut."""
        if self.train is None:
            return None
        if self.groups is None:
            rows, cut = encode(self.train.texts, tokenizer, max_length)
            count = len(rows)
        else:
            rows, cut = group_rows(self.groups, tokenizer, max_length)
            count = len(rows) * len(self.groups.rows[0])
        if cut:
            _warn_of_cut(cut, f"{count:,} training texts", max_length)
        return rows

    def evaluation(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Evaluation:
        """Return the texts that were held out, in order of length, and pairs and searches as further sets."""
        from fineprune.tasks.embeddings.metrics import closeness, of_pairs, of_retrieval  # imports numpy

        more: dict[str, Further] = {}
        if self.sts is not None:
            rows, places = _sorted("task.sts", [*self.sts.first, *self.sts.second], tokenizer, max_length)
            more["sts"] = Further(rows, of_pairs(self.sts, places))
        if self.retrieval is not None:
            searched = [*self.retrieval.queries, *self.retrieval.texts]
            rows, places = _sorted("task.retrieval", searched, tokenizer, max_length)
            more["retrieval"] = Further(rows, of_retrieval(self.retrieval, places))
        rows, _ = _sorted("the validation data", self.validation, tokenizer, max_length)
        return Evaluation(rows, closeness, more)

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Return the function that pads each batch to its longest text."""
        from transformers import DataCollatorWithPadding

        if self.loss is not None:
            from fineprune.tasks.embeddings.losses import GroupCollator  # imports torch

            return GroupCollator(tokenizer, distinct=self.loss == RANKING)
        collate: Callable[[list[Any]], Any] = DataCollatorWithPadding(tokenizer)
        return collate

    def attach_loss(self, model: Any) -> None:
        """Give a model the loss of labeled texts, in place; nothing without one."""
        if self.loss is not None:
            from fineprune.tasks.embeddings.losses import GroupLoss  # imports torch

            model.group_loss = GroupLoss(self.loss, self.matryoshka, model.sentence.width(model))


def encode(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "tuple[Dataset, int]":
    """Return token ids of at most `max_length` for each text, not padded, and how many texts were cut."""
    from datasets import Dataset

    columns = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)
    cut = sum(bool(found.overflowing) for found in columns.encodings or ())
    return Dataset.from_dict(dict(columns)), cut


def group_rows(
    groups: Groups, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "tuple[Dataset, int]":
    """Return rows with a list of token ids for each of their texts, and how many texts were cut."""
    from datasets import Dataset

    size = len(groups.rows[0])
    flat, cut = encode([text for row in groups.rows for text in row], tokenizer, max_length)
    columns = {
        name: [values[start : start + size] for start in range(0, len(values), size)]
        for name, values in flat.to_dict().items()
    }
    columns["labels"] = groups.scores or [0.0] * len(groups.rows)
    return Dataset.from_dict(columns), cut


def _warn_of_cut(cut: int, of: str, max_length: int) -> None:
    warnings.warn(
        f"{cut:,} of {of} have more than {max_length} tokens, and are cut there; training.max_length sets it",
        FinepruneWarning,
        stacklevel=4,
    )


def _sorted(
    where: str, texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "tuple[Dataset, list[int]]":
    """Return each different text as a row, in order of length, and the row of each of `texts`; warn if some
    are cut, `where` says of what.
    """
    different = list(dict.fromkeys(texts))
    rows, cut = encode(different, tokenizer, max_length)
    if cut:
        _warn_of_cut(cut, f"{len(different):,} texts of {where}", max_length)
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    places = {different[number]: place for place, number in enumerate(order)}
    return rows.select(order), [places[text] for text in texts]
