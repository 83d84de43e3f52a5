"""Tell a model that answers the same to everything: its score looks like one, and it learned nothing."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fineprune.tasks.kinds import Head

if TYPE_CHECKING:
    from transformers import EvalPrediction

_IGNORED = -100  # the label of tokens that no score counts


class Answers(NamedTuple):
    """What the predictions of an evaluation say about the model."""

    constant: bool
    """Whether all answers are the same."""

    answer: str | None
    """That answer: the name of its class, or "" for no answer; None if answers differ or have no name."""

    majority: float | None
    """The share of the most frequent class among the true labels; None for other heads."""


class Watched:
    """The scoring function of an evaluation, which also looks at what was answered."""

    def __init__(
        self, score: "Callable[[EvalPrediction], dict[str, float]]", head: Head, labels: Mapping[int, str]
    ) -> None:
        self._score, self._head, self._labels = score, head, labels
        self.answers: Answers | None = None
        """About the evaluation before any of further validation sets; None before the first."""

    def __call__(self, evaluation: "EvalPrediction") -> dict[str, float]:
        scores = self._score(evaluation)
        if self.answers is None:
            self.answers = look(self._head, evaluation.predictions, evaluation.label_ids, self._labels)
            if getattr(self._score, "only_empty", False):  # by rules that the logits alone do not show
                self.answers = Answers(True, "", None)
        return scores


def look(head: Head, predictions: Any, truth: Any, labels: Mapping[int, str]) -> Answers:
    """Return whether all predictions are the same answer.

    Args:
        head: the form of the answers.
        predictions: the logits, as `EvalPrediction` has them.
        truth: the true labels; tokens that do not count have -100.
        labels: the names of the classes.
    """
    if head == "spans":
        starts, ends = (np.asarray(logits).argmax(-1) for logits in predictions[:2])
        return Answers(len(starts) > 1 and len(np.unique(starts)) == len(np.unique(ends)) == 1, None, None)
    logits = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
    truth = np.asarray(truth)
    if head == "embeddings":
        return Answers(len(logits) > 1 and float(np.ptp(logits, axis=0).max()) <= 1e-6, None, None)
    if head == "values":
        values, spread = logits.reshape(-1), np.ptp(truth) if truth.size else 0.0
        return Answers(bool(spread > 0 and np.ptp(values) <= 1e-4 * spread), None, None)
    counted = truth != _IGNORED
    chosen, true = logits.argmax(-1)[counted], truth[counted]
    constant = len(np.unique(true)) > 1 and len(np.unique(chosen)) == 1
    majority = float(np.unique(true, return_counts=True)[1].max() / len(true)) if len(true) else None
    return Answers(constant, labels.get(int(chosen[0])) if constant else None, majority)
