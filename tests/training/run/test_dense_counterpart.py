"""The dense run that a pruned one is compared with: the one that it started from, or one beside it."""

import json

import pytest

from fineprune.training.run.dense_counterpart import dense_scores

TASK = {"train": "d.tsv"}


def recipe(model="minilm", pruning=None, seed=0, task=TASK, layers=None, **sections):
    own = {"name": str(model), "layers": layers}
    return {"model": own, "task": task, "training": {"seed": seed}, "pruning": pruning} | sections


def run(folder, score, metric="accuracy", **settings):
    numbers = dict.fromkeys(("density", "kept", "total", "parameters", "steps", "seconds"), 1)
    results = {"recipe": recipe(**settings), "metric": metric, "score": score, "scores": {metric: score}}
    results |= numbers
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return results


def scores(folder, **settings):
    results = {"recipe": recipe(pruning={"density": 0.1}, **settings), "metric": "accuracy"}
    return dense_scores(folder, results)


def test_the_run_that_it_started_from_wins(tmp_path):
    run(tmp_path / "first" / "dense", 0.9)
    run(tmp_path / "runs" / "beside", 0.8)
    for model in (tmp_path / "first" / "dense", tmp_path / "first" / "dense" / "model"):
        assert scores(tmp_path / "runs" / "pruned", model=model) == {"accuracy": 0.9}
    assert scores(tmp_path / "runs" / "pruned", model=tmp_path / "first" / "dense", layers=3) is None
    assert scores(tmp_path / "runs" / "pruned") == {"accuracy": 0.8}


def test_the_same_seed_wins(tmp_path):
    run(tmp_path / "a", 0.7, seed=1)
    assert scores(tmp_path / "pruned", seed=2) == {"accuracy": 0.7}
    run(tmp_path / "b", 0.8, seed=2)
    assert scores(tmp_path / "pruned", seed=2) == {"accuracy": 0.8}


@pytest.mark.parametrize(
    "other",
    [
        {"model": "another"},
        {"layers": 3},
        {"task": {"train": "e.tsv"}},
        {"pruning": {"density": 1.0}},
        {"distillation": {"teacher": "t"}},
        {"metric": "f1"},
        {"score": float("nan")},
        {"score": "high"},
    ],
)
def test_another_run_is_not_its_dense_one(other, tmp_path):
    run(tmp_path / "beside", **({"score": 0.9} | other))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "results.json").write_text("[")
    assert scores(tmp_path / "pruned") is None


def test_a_dense_run_and_odd_results_have_none(tmp_path):
    own = run(tmp_path / "dense", 0.9)
    assert dense_scores(tmp_path / "dense", own) is None
    assert dense_scores(tmp_path / "dense", {"recipe": {"pruning": {}}, "metric": "accuracy"}) is None
    assert dense_scores(tmp_path / "dense", {}) is None
