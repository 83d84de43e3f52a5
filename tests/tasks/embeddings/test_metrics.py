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
    # 31 texts that are turned together keep their ten nearest.
    dense = at(*range(31))
    assert closeness(of(at(*range(50, 81)), dense))["neighbors"] == 1
    # Three groups of 11 texts, in which each has its ten nearest. Two texts change groups: each keeps none of
    # its ten, and each of the other 20 there loses one.
    groups = [start + at_ for start in (0, 60, 120) for at_ in range(11)]
    moved = groups.copy()
    moved[0], moved[11] = groups[11], groups[0]
    assert closeness(of(at(*moved), at(*groups)))["neighbors"] == pytest.approx((11 + 20 * 0.9) / 33)


def test_neighbors_of_few_texts_are_a_third_of_the_others():
    # 7 texts, two neighbors each; the first of either group of three has changed its group. Both keep none of
    # their neighbors, the four others there one each, and the last text, far away, its two.
    dense, ours = at(0, 1, 3, 40, 41, 43, 90), at(40, 1, 3, 0, 41, 43, 90)
    assert closeness(of(ours, dense))["neighbors"] == pytest.approx((4 * 0.5 + 1) / 7)
    # 3 texts, one neighbor each: 1, 0 and 1 by the dense model, here 2, 2 and 0.
    assert closeness(of(at(0, 50, 10), at(0, 10, 50)))["neighbors"] == 0


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
    score = of_retrieval(Retrieval(["q", "r"], ["0", "40", "90"], [[0], [0]]), [0, 1, 2, 3, 4])
    found = score(of(at(5, 30, 0, 40, 90)))
    assert found == pytest.approx(
        {"recall_at_1": 0.5, "recall_at_10": 1.0, "mrr_at_10": 0.75, "ndcg_at_10": (1 + 1 / np.log2(3)) / 2}
    )


def test_several_right_texts_are_scored_as_sentence_transformers_does():
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    # By q at 0 degrees the order is 5 (right), 20, 40 (right); r at 90 has one right text, the third.
    texts, right = ["5", "20", "40", "70"], [[2, 0], [1]]
    found = of_retrieval(Retrieval(["q", "r"], texts, right), range(6))(of(at(0, 90, 5, 20, 40, 70)))
    gain = (1 + 1 / 2) / (1 + 1 / np.log2(3))
    expected = {
        "recall_at_1": 0.25,
        "recall_at_10": 1.0,
        "mrr_at_10": (1 + 1 / 3) / 2,
        "ndcg_at_10": (gain + 1 / 2) / 2,
    }
    assert found == pytest.approx(expected)
    theirs = InformationRetrievalEvaluator(
        {"q": "q", "r": "r"}, {text: text for text in texts}, {"q": {"5", "40"}, "r": {"20"}}
    )
    ranked = [[(5, 3), (20, 2), (40, 1), (70, 0)], [(70, 3), (40, 2), (20, 1), (5, 0)]]
    rows = [[{"corpus_id": str(text), "score": score} for text, score in row] for row in ranked]
    scores = theirs.compute_metrics(rows)
    assert found == pytest.approx(
        {
            "recall_at_1": scores["recall@k"][1],
            "recall_at_10": scores["recall@k"][10],
            "mrr_at_10": scores["mrr@k"][10],
            "ndcg_at_10": scores["ndcg@k"][10],
        }
    )
    # Twelve right texts that come first: ten of them fit.
    many = of_retrieval(Retrieval(["q"], [str(at) for at in range(13)], [[*range(12)]]), range(14))
    best = many(of(at(0, *range(13))))
    assert best == pytest.approx(
        {"recall_at_1": 1 / 12, "recall_at_10": 10 / 12, "mrr_at_10": 1, "ndcg_at_10": 1}
    )


def test_vectors_that_are_not_numbers_find_nothing():
    score = of_retrieval(Retrieval(["q"], [str(i) for i in range(20)], [[0]]), range(21))
    found = score(of(np.full((21, 2), np.nan)))
    assert set(found.values()) == {0.0}


def test_one_vector_for_all_texts_finds_none_first():
    score = of_retrieval(Retrieval(["q"], ["a", "b"], [[1]]), [0, 1, 2])
    assert score(of(at(7, 7, 7)))["recall_at_1"] == 0.0
