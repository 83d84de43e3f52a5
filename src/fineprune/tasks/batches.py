"""Run a trained model on texts: checks, lengths and batches that all kinds of task share."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from fineprune._engine_errors import engine_errors
from fineprune._messages import one_line
from fineprune.errors import FinepruneError
from fineprune.tasks.model_config import longest_input
from fineprune.tasks.source import Source
from fineprune_runtime import results
from fineprune_runtime.cross_encoders import is_cross_encoder

if TYPE_CHECKING:
    from torch import Tensor
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


def read_texts(
    texts: Iterable[str], pairs: Iterable[str] | None, batch_size: int
) -> tuple[list[str], list[str] | None]:
    """Return texts and pairs as lists.

    Raises:
        FinepruneError: as `fineprune_runtime.results.read_texts`.
    """
    with engine_errors():
        return results.read_texts(texts, pairs, batch_size)


def check_pairs(model: "PreTrainedModel", given: bool) -> None:
    """Raise `FinepruneError` for single texts on a model of pairs, and for pairs on one of single texts."""
    paired = getattr(model.config, results.TEXT_PAIRS, None)
    if paired is None and is_cross_encoder(vars(model.config), {}):
        paired = True
    with engine_errors():
        results.check_pairs(paired, given)


def check_finite(logits: "Tensor", sources: Sequence[int], lengths: Sequence[int] | None = None) -> None:
    """Raise `FinepruneError` if logits are NaN or infinite.

    Args:
        logits: (rows, …), or (rows, tokens, …) with `lengths`.
        sources: the index of the text of each row.
        lengths: the number of tokens of each row, padded on the right; None: the logits are not of tokens.
    """
    if logits.isfinite().all():
        return
    for row, values in enumerate(logits):
        values = values if lengths is None else values[: lengths[row]]
        if not values.isfinite().all():
            raise FinepruneError(str(results.not_finite(sources[row])))


@contextmanager
def tokenizing() -> Iterator[None]:
    """Raise `FinepruneError` for the errors of the tokenizers library.

    Those are `Exception` itself, and pyo3's PanicException, a `BaseException`, of a panic in its Rust code.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise FinepruneError(
                f"predict: the model's tokenizer cannot read the texts ({one_line(error)}); it is damaged: "
                "save or fetch the model again"
            ) from error
        raise


def private_copy(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Copy a tokenizer without its vocabulary, which the copy shares.

    A call of a fast tokenizer sets its truncation and padding, which the call of another thread would use.
    """
    from fineprune_runtime.tokenizer_file import shallow_copy  # imports numpy

    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is None:  # written in Python: a call changes nothing
        return tokenizer
    result: Any = copy.copy(tokenizer)
    result._tokenizer = shallow_copy(backend)
    if result._tokenizer.get_added_tokens_decoder().keys() != backend.get_added_tokens_decoder().keys():
        result._tokenizer = copy.deepcopy(backend)  # slow; ids with gaps between them are not given again
    return result


def fitting(max_length: int, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return `max_length`, or the tokens that model and tokenizer take if that is less."""
    limits = (max_length, longest_input(model), tokenizer.model_max_length)
    return int(min(limit for limit in limits if limit is not None and limit >= 1))  # a file may say 12.0


def usual_length(model: "PreTrainedModel", otherwise: int) -> int:
    """Return the tokens of a text where a call does not say: those of the model's run, else `otherwise`."""
    return results.usual_length(vars(model.config), otherwise)


def as_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return columns of equal length as rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def longest_first(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of batches of similar length; the first batch needs the most memory."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
