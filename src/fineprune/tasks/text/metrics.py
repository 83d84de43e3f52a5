"""The scores of a classification or regression task, by scikit-learn and SciPy."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fineprune._extras import require
from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from transformers import EvalPrediction

CLASSES = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")


def compute_metrics(classes: int | None) -> "Callable[[EvalPrediction], dict[str, float]]":
    """The function that a `transformers.Trainer` scores `classes` with; None: a regression.

    It takes logits of shape (rows, classes), or (rows, 1) for regression, beside the true labels
    of shape (rows,), and returns fractions, not percentages:

    - classes: `accuracy`, `f1` (two classes: of class id 1; more: the mean over the classes that
      occur), `matthews` (-1 to 1).
    - regression: `pearson`, `spearman` (-1 to 1).

    A constant prediction scores 0.0 where the formula divides by zero. It raises `FinepruneError`
    when a prediction is NaN or infinite: the model diverged and has no score.
    """
    require("recipes", "scoring")

    def score(evaluation: "EvalPrediction") -> dict[str, float]:
        import numpy as np

        logits = evaluation.predictions
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        truth = np.asarray(evaluation.label_ids).reshape(-1)
        if not np.isfinite(logits).all():
            raise FinepruneError(
                "the model's predictions contain NaN or infinity: training diverged; lower the learning rate"
            )
        if classes is None:
            return _correlations(truth, logits.reshape(-1))
        return _class_scores(truth, logits.argmax(axis=-1), classes)

    return score


def _class_scores(truth: Any, guess: Any, classes: int) -> dict[str, float]:
    from sklearn import metrics

    positive = [1] if classes == 2 else None
    constant = len(set(guess.tolist())) < 2 or len(set(truth.tolist())) < 2
    return {
        "accuracy": float(metrics.accuracy_score(truth, guess)),
        "f1": float(metrics.f1_score(truth, guess, labels=positive, average="macro", zero_division=0)),
        "matthews": 0.0 if constant else float(metrics.matthews_corrcoef(truth, guess)),
    }


def _correlations(truth: Any, guess: Any) -> dict[str, float]:
    import warnings

    import numpy as np
    from scipy import stats

    truth, guess = truth.astype(np.float64), guess.astype(np.float64)
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(guess) == 0:
        return dict.fromkeys(REGRESSION, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return {
            "pearson": float(np.nan_to_num(stats.pearsonr(truth, guess).statistic)),
            "spearman": float(np.nan_to_num(stats.spearmanr(truth, guess).statistic)),
        }
