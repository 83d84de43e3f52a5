"""Losses of sentence-transformers for labeled texts, and batches that hold several texts of a row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from fineprune._extras import require
from fineprune.errors import FinepruneError
from fineprune.tasks.embeddings.groups import COSENT


class GroupLoss:
    """A loss of sentence-transformers, from the embeddings of a batch that `GroupCollator` made."""

    def __init__(self, name: str, matryoshka: Sequence[int], width: int) -> None:
        """Make the loss.

        Args:
            name: one of `groups.LOSSES`.
            matryoshka: the sizes at which shortened embeddings are compared, too; none: whole ones alone.
            width: the features of an embedding.

        Raises:
            FinepruneError: sentence-transformers is not installed, or a size is larger than the embedding.
        """
        if matryoshka and max(matryoshka) > width:
            raise FinepruneError(
                f"task.matryoshka={list(matryoshka)}: the model's embeddings have {width} numbers, so no "
                "size can be larger"
            )
        require("sentences", f"task.loss={name}")
        from sentence_transformers.sentence_transformer import losses

        given: Any = _Given(width)
        kind = losses.CoSENTLoss if name == COSENT else losses.MultipleNegativesRankingLoss
        self._loss: nn.Module = kind(given)
        if matryoshka:
            self._loss = losses.MatryoshkaLoss(given, self._loss, list(matryoshka))

    def __call__(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            embeddings: (texts of a row · rows, features): those of all first texts, then of all second ones …
            labels: the score of each row, (rows,).
        """
        columns = embeddings.chunk(len(embeddings) // len(labels))
        loss: Tensor = self._loss([{"sentence_embedding": column} for column in columns], labels)
        return loss


class _Given(nn.Module):
    """Stands in for a SentenceTransformer where the embeddings are computed already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features

    def get_embedding_dimension(self) -> int:
        """Return the features of an embedding."""
        return self._width


class GroupCollator(DataCollatorWithPadding):  # type: ignore[misc]
    """Pads rows to a batch: rows of several texts give all first texts, then all second ones, and so on."""

    def __init__(self, tokenizer: Any, distinct: bool) -> None:
        """Prepare.

        Args:
            tokenizer: pads.
            distinct: leave rows out of a batch that repeat a text of it: a loss that takes the texts of
                other rows for wrong would take a right one for wrong.
        """
        super().__init__(tokenizer)
        self._distinct = distinct

    def __call__(self, features: list[Any]) -> Any:
        """Return the batch."""
        if not isinstance(features[0]["input_ids"][0], list):
            return super().__call__(features)
        rows = _distinct(features) if self._distinct else features
        names = [name for name in rows[0] if name != "labels"]
        columns = range(len(rows[0]["input_ids"]))
        batch = super().__call__([{name: row[name][at] for name in names} for at in columns for row in rows])
        batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=torch.float32)
        return batch


def _distinct(rows: Sequence[Any]) -> list[Any]:
    """Return the rows whose texts are in no row before."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for row in rows:
        texts = {tuple(ids) for ids in row["input_ids"]}
        if seen.isdisjoint(texts):
            seen |= texts
            found.append(row)
    return found
