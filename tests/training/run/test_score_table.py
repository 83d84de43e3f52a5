"""The table of scores at the end of a run."""

from fineprune.training.run.score_table import score_lines

DENSE = {"spearman": 1.0, "recall": 0.5, "none": 0.0}


def test_each_score_has_the_dense_one_and_the_share_beside_it():
    scores = {"loss": 1.0, "spearman": 0.75, "recall": 0.25, "none": 0.0}
    assert score_lines({"scores": scores, "dense": {"scores": DENSE}}) == [
        "            dense   pruned     kept",
        "spearman   1.0000   0.7500    75.0%",
        "recall     0.5000   0.2500    50.0%",
        "none       0.0000   0.0000        -",
    ]


def test_a_run_of_few_scores_or_without_a_dense_model_has_no_table():
    assert score_lines({"scores": {"accuracy": 0.5}, "dense": {"scores": {"accuracy": 1.0}}}) == []
    assert score_lines({"scores": DENSE, "dense": None}) == []
