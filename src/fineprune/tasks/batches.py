"""Run a trained model on texts: checks, lengths and batches that all kinds of task share."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fineprune._engine_errors import engine_errors
from fineprune._text_files import check_unicode
from fineprune.tasks.model_config import longest_input
from fineprune.tasks.source import Source
from fineprune_runtime import results

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Asked(NamedTuple):
    """Texts that the command line asks a model about, and how its recipe reads texts."""

    texts: list[str]
    pairs: list[str]
    """The second text of each pair; empty for single texts."""

    max_length: int | None = None
    """Tokens of a text; None: the usual number of the kind."""

    task: Source | None = None
    """The recipe's task, where there is a recipe."""

    def reading(self) -> dict[str, int]:
        """Return the `max_length` argument of the kinds' predictions, where it is given."""
        return {} if self.max_length is None else {"max_length": self.max_length}


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int) -> None:
    """Raise `FinepruneError` for texts that no model can answer, missing pairs and empty batches."""
    with engine_errors():
        results.check_texts(texts, pairs, batch_size)
    for name, values in (("texts", texts), ("pairs", pairs or ())):
        for index, value in enumerate(values):
            check_unicode(value, f"predict: {name}[{index}]")


def fitting(max_length: int, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return `max_length`, or the tokens that model and tokenizer take if that is less."""
    limits = (max_length, longest_input(model), tokenizer.model_max_length)
    return min(limit for limit in limits if limit is not None and limit > 0)


def as_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return columns of equal length as rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def longest_first(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of batches of similar length; the first batch needs the most memory."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
