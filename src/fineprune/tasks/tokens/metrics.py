"""The scores of tags, and of the entities that they make up, by seqeval."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fineprune._extras import require
from fineprune.errors import FinepruneError
from fineprune_runtime.entities import are_entities

if TYPE_CHECKING:
    from transformers import EvalPrediction

METRICS = ("f1", "precision", "recall", "accuracy")


def compute_metrics(
    labels: Sequence[str], sentences: Sequence[Sequence[int]] | None = None
) -> "Callable[[EvalPrediction], dict[str, float]]":
    """Return the function that a `transformers.Trainer` scores tags with.

    It takes logits of shape (rows, tokens, labels) beside label ids of shape (rows, tokens), where -100
    does not count, and returns the accuracy over words; if the tags are of entities, also F1, precision and
    recall over entities. Entities are seqeval's: an I- without a B- before it begins one, as in conlleval.

    Args:
        labels: the tags by id.
        sentences: for each sentence, its rows in their order in the text; None: each row is a sentence.
    """
    require("recipes", "scoring")

    def score(evaluation: "EvalPrediction") -> dict[str, float]:
        import numpy as np
        from seqeval import metrics

        logits = evaluation.predictions
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        truth = np.asarray(evaluation.label_ids)
        if not np.isfinite(logits).all():
            raise FinepruneError(
                "the model's predictions contain NaN or infinity: training diverged; lower the learning rate"
            )
        counted, guess = truth != -100, logits.argmax(axis=-1)
        names = np.asarray(labels, dtype=object)
        parts = [[row] for row in range(len(truth))] if sentences is None else sentences

        def tags(ids: Any) -> list[list[str]]:
            return [[name for row in rows for name in names[ids[row][counted[row]]]] for rows in parts]

        true_tags, guessed = tags(truth), tags(guess)
        scores = {"accuracy": float((guess == truth)[counted].mean()) if counted.any() else 0.0}
        if are_entities(labels):
            for name in ("f1", "precision", "recall"):
                measure = getattr(metrics, f"{name}_score")
                scores[name] = float(measure(true_tags, guessed, zero_division=0))
        return scores

    return score
