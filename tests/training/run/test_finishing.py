"""The end of a run: what its scores are of, and what is said of a model that learned nothing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fineprune.training.run import finishing
from fineprune.training.run.constant_answers import Answers
from fineprune.training.run.evaluate import evaluate_run
from fineprune.training.run.inspection import headline_of
from fineprune.training.run.train import run_recipe


def test_a_run_that_learned_nothing_says_so(files, tmp_path, caplog):
    training = files.recipe().to_dict()["training"] | {"learning_rate": 0.0}
    results = run_recipe(files.recipe(training=training, pruning=None), tmp_path / "run", progress=False)
    rows = [json.loads(line)["label"] for line in files.validation.read_text().splitlines()]
    assert results["majority"] == max(rows.count("pos"), rows.count("neg")) / len(rows)
    assert "it always gives the same answer" in headline_of(results | {"constant": True})
    assert "always" not in headline_of(results | {"constant": False})
    said = [text for text in results["warnings"] if "it learned nothing" in text]
    assert len(said) == results["constant"]


@pytest.mark.parametrize(
    ("width", "rate", "remedy"),
    [
        (384, 1e-4, "or a training.learning_rate of up to 0.001 may help (the rate here: 0.0001)"),
        (384, 1e-3, "learned nothing; more training.steps may help (the rate here: 0.001)"),
        (8, 1e-4, "learned nothing; more training.steps may help"),  # no rates are known for so small a model
    ],
)
def test_what_may_help_a_run_that_learned_nothing(files, width, rate, remedy):
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    recipe = files.recipe(training={"learning_rate": rate})
    answers = Answers(constant=True, majority=0.5, answer="pos")
    assert remedy in finishing._learned_nothing(recipe, model, answers)


def test_final_scores_are_those_of_float32(files, tmp_path):
    recipe = files.recipe(training=files.recipe().to_dict()["training"] | {"precision": "bfloat16"})
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    assert results["scored_in"] == "float32"
    plain = replace(recipe, training=replace(recipe.training, precision="float32"))
    (tmp_path / "run" / "recipe.yaml").write_text(plain.to_yaml())
    assert results["scores"] == evaluate_run(tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    assert results["scores"] == evaluate_run(tmp_path / "run")
