"""Scores of tags, counted by hand; entities are seqeval's."""

from types import SimpleNamespace

import numpy as np
import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.tokens.metrics import compute_metrics

LABELS = ("O", "B-PER", "I-PER", "B-LOC")


def scores(guess: list[list[int]], truth: list[list[int]]) -> dict[str, float]:
    return compute_metrics(LABELS)(
        SimpleNamespace(predictions=np.eye(4)[np.array(guess)], label_ids=np.array(truth))
    )


def test_scores_by_hand():
    # Truth: PER(0-1), LOC(3) | PER(0). Guess: PER(0-1) right, nothing for LOC | LOC(0) wrong.
    found = scores([[1, 2, 0, 0], [3, 0, 0, 0]], [[1, 2, 0, 3], [1, -100, -100, -100]])
    assert found == pytest.approx({"accuracy": 3 / 5, "precision": 1 / 2, "recall": 1 / 3, "f1": 0.4})


def test_an_entity_over_two_rows_is_one():
    """The rows of a sentence may be anywhere; an entity of two words, of which one is found, is wrong."""
    truth = np.array([[2, 0, -100], [3, -100, -100], [0, 0, 1]])  # rows 2 and 0 are one sentence
    guess = np.eye(4)[np.where(truth == 2, 0, truth.clip(0))]
    score = compute_metrics(LABELS, [[2, 0], [1]])
    found = score(SimpleNamespace(predictions=guess, label_ids=truth))
    assert found == pytest.approx({"accuracy": 5 / 6, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2})
    assert score(SimpleNamespace(predictions=np.eye(4)[truth.clip(0)], label_ids=truth))["f1"] == 1.0


def test_an_entity_may_begin_with_i_as_in_conlleval():
    assert scores([[2, 2, 0]], [[1, 2, 0]])["f1"] == 1.0
    assert scores([[1, 1, 0]], [[1, 2, 0]])["f1"] == 0.0


def test_no_entities_and_nan():
    assert scores([[0, 0]], [[0, 0]]) == {"accuracy": 1.0, "f1": 0.0, "precision": 0.0, "recall": 0.0}
    broken = SimpleNamespace(predictions=np.full((1, 2, 4), np.nan), label_ids=np.zeros((1, 2)))
    with pytest.raises(FinepruneError, match="training diverged"):
        compute_metrics(LABELS)(broken)


def test_plain_tags_have_accuracy_only():
    evaluation = SimpleNamespace(predictions=np.eye(2)[[[0, 1]]], label_ids=np.array([[0, -100]]))
    assert compute_metrics(("NN", "VB"))(evaluation) == {"accuracy": 1.0}
