"""Scores of embeddings in the plane, where every cosine is seen at once."""

import numpy as np
import pytest
from transformers import EvalPrediction

from fineprune import FinepruneError
from fineprune.tasks.embeddings.metrics import closeness, of_pairs, of_retrieval
from fineprune.tasks.embeddings.texts import Pairs, Retrieval


def at(*degrees: float) -> np.ndarray:
    """Vectors of length 2 at these angles."""
    angles = np.radians(degrees)
    return 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def of(vectors: np.ndarray, labels: np.ndarray | None = None) -> EvalPrediction:
    return EvalPrediction(predictions=vectors, label_ids=vectors if labels is None else labels)


def test_the_dense_model_is_nearest_to_itself():
    assert closeness(of(at(0, 10, 30, 70))) == pytest.approx({"spearman": 1, "cosine": 1, "neighbors": 1})


def test_turning_all_vectors_moves_the_cosine_alone():
    found = closeness(of(at(60, 70, 90, 130), at(0, 10, 30, 70)))
    assert found == pytest.approx({"spearman": 1, "cosine": 0.5, "neighbors": 1}, abs=1e-6)


def test_neighbors_are_the_ten_nearest_others():
    # Dense: a circle arc; ours: the last text has moved to the other end, so each text sees other neighbors.
    dense, ours = at(*range(0, 120, 10)), at(*range(0, 110, 10), -10)
    # 11 others each, and one is left out: the farthest. By the dense model that is text 11 for texts 0 to 5
    # and text 0 for 6 to 11; here text 10 for 11 and 0 to 4, and text 11 for 5 to 10. Only text 5 agrees.
    assert closeness(of(ours, dense))["neighbors"] == pytest.approx((1 + 11 * 0.9) / 12)


def test_one_vector_for_all_texts_has_no_correlation():
    assert closeness(of(at(5, 5, 5), at(0, 10, 30)))["spearman"] == 0.0
    assert of_pairs(Pairs(["a", "b"], ["c", "d"], [1.0, 2.0]), [0, 1, 2, 3])(of(at(5, 5, 5, 5))) == {
        "spearman": 0.0,
        "pearson": 0.0,
    }


def test_equal_texts_of_the_dense_model_have_no_correlation():
    assert closeness(of(at(0, 10, 30), at(5, 5, 5)))["spearman"] == 0.0


def test_a_model_that_diverged_has_no_score():
    with pytest.raises(FinepruneError, match="training diverged; lower the learning rate"):
        closeness(of(np.full((3, 2), np.nan), at(0, 10, 30)))


def test_pairs_are_correlated_with_their_scores():
    # The rows are in another order than the pairs: a is row 2, b is row 0; cosines are 1, 0.5 and 0.
    score = of_pairs(Pairs(["a", "a", "a"], ["a", "b", "c"], [5.0, 2.5, 0.0]), [2, 2, 2, 2, 0, 1])
    assert score(of(at(60, 90, 0))) == pytest.approx({"spearman": 1, "pearson": 1})


def test_a_search_is_scored_by_the_rank_of_the_right_text():
    # Texts at 0, 40 and 90 degrees. Query q at 5 degrees finds text 0 first, and r at 30
    # degrees, which wants it too, finds text 40 first.
    score = of_retrieval(Retrieval(["q", "r"], ["0", "40", "90"], [0, 0]), [0, 1, 2, 3, 4])
    found = score(of(at(5, 30, 0, 40, 90)))
    assert found == pytest.approx(
        {"recall_at_1": 0.5, "recall_at_10": 1.0, "mrr_at_10": 0.75, "ndcg_at_10": (1 + 1 / np.log2(3)) / 2}
    )


def test_vectors_that_are_not_numbers_find_nothing():
    score = of_retrieval(Retrieval(["q"], [str(i) for i in range(20)], [0]), range(21))
    found = score(of(np.full((21, 2), np.nan)))
    assert set(found.values()) == {0.0}


def test_one_vector_for_all_texts_finds_none_first():
    score = of_retrieval(Retrieval(["q"], ["a", "b"], [1]), [0, 1, 2])
    assert score(of(at(7, 7, 7)))["recall_at_1"] == 0.0
