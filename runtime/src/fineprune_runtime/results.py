"""What models answer, and what they can be asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from fineprune_runtime.errors import EngineError


@dataclass(frozen=True)
class Prediction:
    """One answer: the class name and its probability (0 to 1); for regression None and the value."""

    label: str | None
    score: float


@dataclass(frozen=True)
class Entity:
    """A part of a text: its type, the characters `text[start:end]`, and the mean probability of its tags."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answer:
    """`context[start:end]` is `text`; "" and twice 0: no answer. `score`: its share among the n best."""

    text: str
    score: float
    start: int
    end: int


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int) -> None:
    """Raise `EngineError` for what no model can answer: texts that are none, too few pairs, empty batches."""
    for name, values in (("texts", texts), ("pairs", pairs or [])):
        if isinstance(values, str):
            raise EngineError(f"predict: {name} is one string {values[:40]!r}; give a list of them")
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise EngineError(f"predict: {name}[{index}] is {value!r}, which is not text")
    if pairs is not None and len(pairs) != len(texts):
        raise EngineError(
            f"predict: {len(texts)} texts but {len(pairs)} pairs; give one pair text for each text"
        )
    if batch_size < 1:
        raise EngineError(f"predict: batch_size is {batch_size}, allowed: 1 or more")
