"""The results that models return, and the check of the texts that they are given."""

from collections.abc import Sequence
from dataclasses import dataclass

from fineprune_runtime.errors import EngineError


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


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int) -> None:
    """Raise `EngineError` for values that are not text, a wrong number of pairs, or a batch size below 1."""
    for name, values in (("texts", texts), ("pairs", pairs or [])):
        if isinstance(values, str):
            raise EngineError(f"predict: {name} is one string {values[:40]!r}; give a list of them")
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise EngineError(f"predict: {name}[{index}] is {value!r}, which is not text")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise EngineError(
                    f"predict: {name}[{index}] {value[:40]!r} holds a lone surrogate at {error.start}, which "
                    "is not text; repair its encoding"
                ) from error
    if pairs is not None and len(pairs) != len(texts):
        raise EngineError(
            f"predict: {len(texts)} texts but {len(pairs)} pairs; give one pair text for each text"
        )
    if batch_size < 1:
        raise EngineError(f"predict: batch_size is {batch_size}, allowed: 1 or more")
