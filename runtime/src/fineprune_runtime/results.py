"""The results that models return, and the check of the texts that they are given."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from fineprune_runtime.errors import EngineError

TEXT_PAIRS = "fineprune_text_pairs"
"""The setting of a model's config that says whether it was trained on pairs of texts."""

MAX_LENGTH = "fineprune_max_length"
"""The setting of a model's config that says to how many tokens the texts of its run were cut."""

USUAL_LENGTH = 128
"""Tokens of a text where nothing says how many; also in fineprune's own `predict` and its recipes."""

USUAL_WINDOW = 384
"""Tokens of a question and a part of its context where nothing says how many."""


def usual_length(config: Mapping[str, Any], otherwise: int) -> int:
    """Return the tokens of a text where a call does not say: those of the model's run, else `otherwise`."""
    said = config.get(MAX_LENGTH)
    return said if isinstance(said, int) and not isinstance(said, bool) and said >= 1 else otherwise


@dataclass(frozen=True)
class Prediction:
    """A class and its probability (0 to 1); in a regression, `label` is None and `score` is the value."""

    label: str | None
    score: float


@dataclass(frozen=True)
class Entity:
    """A part of a text: its type, its characters from start to end, and the mean probability of its tags."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answer:
    """An answer: `text` is `context[start:end]`, and `score` its share among the n best.

    "No answer" has the text "", and start and end are 0.
    """

    text: str
    score: float
    start: int
    end: int


def read_texts(
    texts: Iterable[str], pairs: Iterable[str] | None, batch_size: int, function: str = "predict"
) -> tuple[list[str], list[str] | None]:
    """Return texts and pairs as lists; `function` is what errors call the caller.

    Raises:
        EngineError: one string, a value without order or of another type, one that is not text, a wrong
            number of pairs, or a batch size that is not allowed.
    """
    first = _as_list(f"{function}: texts", texts)
    second = None if pairs is None else _as_list(f"{function}: pairs", pairs)
    if second is not None and len(second) != len(first):
        raise EngineError(
            f"{function}: {len(first)} texts but {len(second)} pairs; give one pair text for each text"
        )
    rows: Any = batch_size  # of a caller without types
    if isinstance(rows, bool) or not isinstance(rows, Integral) or rows < 1:
        raise EngineError(f"{function}: batch_size is {rows!r}, allowed: 1 or more, a whole number")
    return first, second


def _as_list(name: str, values: Iterable[str]) -> list[str]:
    """Return the texts of a list, an array, a column or a generator."""
    if isinstance(values, str):
        raise EngineError(f"{name} is one string {values[:40]!r}; give a list of them")
    if getattr(values, "ndim", 1) > 1:  # a table, whose items are not its rows
        raise EngineError(f"{name} is a table ({type(values).__name__}); give one column of it, the strings")
    try:
        found = None if isinstance(values, bytes | Set | Mapping) else list(values)
    except TypeError:
        found = None
    if found is None:  # no sequence at all, or one without an order of its own
        raise EngineError(f"{name} is of the type {type(values).__name__}; give a list of strings")
    for index, value in enumerate(found):
        if not isinstance(value, str):
            raise EngineError(f"{name}[{index}] is {value!r}, which is not text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise EngineError(
                f"{name}[{index}] {value[:40]!r} holds a lone surrogate at {error.start}, which "
                "is not text; repair its encoding"
            ) from error
    return found


def check_pairs(paired: object, given: bool) -> None:
    """Raise `EngineError` for single texts on a model of pairs, and for pairs on a model of single texts.

    Args:
        paired: whether the model was trained on pairs, `TEXT_PAIRS` of its config; None: unknown.
        given: whether pairs are given.
    """
    if paired is True and not given:
        raise EngineError(
            "predict: the model was trained on pairs of texts; give the second text of each, --pair on the "
            "command line, pairs= in Python"
        )
    if paired is False and given:
        raise EngineError(
            "predict: the model was trained on single texts; leave the second texts out, --pair on the "
            "command line, pairs= in Python"
        )


def not_finite(index: int) -> EngineError:
    """Return the error for logits of the text at `index` that are NaN or infinite."""
    return EngineError(
        f"predict: the model's output for texts[{index}] is NaN or infinite: its weights are damaged, its "
        "training diverged, or its values are too large for this dtype; save or fetch the model again, or "
        "run it in float32"
    )
