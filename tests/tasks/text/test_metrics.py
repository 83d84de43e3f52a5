import math

import numpy as np
import pytest
from transformers import EvalPrediction

from fineprune.errors import FinepruneError
from fineprune.tasks.text.metrics import compute_metrics


def score(labels, predictions, truth):
    logits = predictions if isinstance(predictions, tuple) else np.asarray(predictions, dtype=np.float32)
    scores = compute_metrics(None if labels is None else len(labels))
    result = scores(EvalPrediction(predictions=logits, label_ids=np.asarray(truth)))
    assert all(type(value) is float for value in result.values())
    return result


def one_hot(ids, classes):
    return np.eye(classes, dtype=np.float32)[ids]


def test_two_classes_by_hand():
    # truth 1 1 1 0 0, guess 1 1 0 1 0: TP 2, FN 1, FP 1, TN 1.
    result = score(("a", "b"), one_hot([1, 1, 0, 1, 0], 2), [1, 1, 1, 0, 0])
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert result["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert set(result) == {"accuracy", "f1", "matthews"}


def test_three_classes_by_hand():
    # truth 0 0 1 2, guess 0 1 1 1: F1 of the classes 2/3, 1/2, 0; the mean is 7/18.
    result = score(("a", "b", "c"), one_hot([0, 1, 1, 1], 3), [0, 0, 1, 2])
    assert result["accuracy"] == pytest.approx(1 / 2)
    assert result["f1"] == pytest.approx(7 / 18)


def test_a_class_that_does_not_occur_does_not_lower_f1():
    assert score(("a", "b", "c"), one_hot([0, 1], 3), [0, 1])["f1"] == 1.0


@pytest.mark.parametrize(("guess", "accuracy", "f1"), [([0, 0], 0.5, 0.0), ([1, 1], 0.5, 2 / 3)])
def test_constant_classes_score_zero_correlation(guess, accuracy, f1):
    result = score(("a", "b"), one_hot(guess, 2), [0, 1])
    assert result == {"accuracy": accuracy, "f1": pytest.approx(f1), "matthews": 0.0}


def test_no_row_of_the_positive_class_at_all():
    assert score(("a", "b"), one_hot([0, 0], 2), [0, 0]) == {"accuracy": 1.0, "f1": 0.0, "matthews": 0.0}


def test_only_the_logits_of_several_outputs_count():
    logits = (one_hot([1, 0], 2), np.full((2, 3), np.nan))
    assert score(("a", "b"), logits, [1, 0])["accuracy"] == 1.0


def test_regression_by_hand():
    # x = 1 2 3 4, y = 1 3 2 9: sums of products 11.5, of squares 5 and 38.75; ranks of y are 1 3 2 4.
    result = score(None, [[1], [3], [2], [9]], [1.0, 2.0, 3.0, 4.0])
    assert result["pearson"] == pytest.approx(11.5 / math.sqrt(5 * 38.75))
    assert result["spearman"] == pytest.approx(1 - 6 * (0 + 1 + 1 + 0) / (4 * 15))
    assert set(result) == {"pearson", "spearman"}


@pytest.mark.parametrize(
    ("guess", "truth"),
    [
        ([[2], [2], [2]], [1, 2, 3]),
        ([[1], [2], [3]], [2, 2, 2]),
        ([[1]], [1]),
        ([[1e-30], [0], [0]], [1, 2, 3]),
    ],
)
def test_regression_without_spread_scores_no_nan(guess, truth):
    result = score(None, guess, truth)
    assert all(math.isfinite(value) for value in result.values())
    if guess[0][0] != 1e-30:
        assert result == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("labels", [("a", "b"), None])
def test_a_diverged_model_has_no_score(labels, bad):
    with pytest.raises(FinepruneError, match=r"NaN or infinity: training diverged; lower the learning rate"):
        score(labels, [[bad] * (1 if labels is None else 2)], [0])
