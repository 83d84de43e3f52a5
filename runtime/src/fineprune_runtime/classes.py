"""Turn the logits of a model that classifies texts into predictions: a class, several labels, or a number.

Imported where it is used, because fineprune's command line starts without numpy.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np

from fineprune_runtime.errors import EngineError
from fineprune_runtime.heads import Floats, softmax
from fineprune_runtime.results import Prediction

THRESHOLD = 0.5
"""The probability from which on a text has a label, in a model that gives several."""

Problem = Literal["class", "labels", "value"]


def problem(problem_type: Any, classes: int) -> Problem:
    """Return what a model predicts for a text, by `problem_type` of its config, as transformers reads it."""
    if problem_type == "multi_label_classification":
        return "labels"
    return "value" if problem_type == "regression" or classes == 1 else "class"


def best_class(logits: Sequence[Floats], names: Sequence[str], sigmoid: bool = False) -> list[Prediction]:
    """Return the most probable class of each text, by softmax or each class by itself, by the sigmoid.

    A row of `logits` is (classes,).
    """
    shares = [_sigmoid(row) if sigmoid else softmax(row) for row in logits]
    best = [int(row.argmax()) for row in logits]  # two sigmoids may both be 1
    return [Prediction(names[at], float(row[at])) for at, row in zip(best, shares, strict=True)]


def all_labels(
    logits: Sequence[Floats], names: Sequence[str], threshold: float = THRESHOLD
) -> list[list[Prediction]]:
    """Return the labels of each text whose probability by sigmoid is at least `threshold`, the best first."""
    given: Any = threshold  # of a caller without types
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= threshold <= 1:
        raise EngineError(f"threshold is {threshold!r}, expected a probability from 0 to 1")
    found = []
    for row in logits:
        shares = _sigmoid(row)
        order = np.argsort(-shares, kind="stable")
        found.append([Prediction(names[at], float(shares[at])) for at in order if shares[at] >= threshold])
    return found


def one_value(logits: Sequence[Floats], sigmoid: bool = False) -> list[Prediction]:
    """Return the value of a regression for each text: its logit, or the sigmoid of that."""
    for row in logits:
        if len(row) != 1:
            raise EngineError(
                f"predict: the model predicts {len(row)} values for a text, and a prediction has one; "
                "use the model's logits"
            )
    return [Prediction(None, float((_sigmoid(row) if sigmoid else row)[0])) for row in logits]


def _sigmoid(row: Floats) -> Floats:
    shares: Floats = 0.5 + 0.5 * np.tanh(0.5 * row)  # cannot overflow in this form
    return shares
