"""A teacher's score beside its student's."""

import json
from dataclasses import replace

import pytest

from fineprune.training.run.recipe import DistillationConfig
from fineprune.training.run.teacher_score import check_start, recorded_score, teacher_score, weak_teacher
from fineprune.training.run.train import run_recipe


@pytest.fixture
def run(files, tmp_path):
    """A dense run, as its folder and its recipe."""
    recipe = replace(files.recipe(), pruning=None)
    run_recipe(recipe, tmp_path / "dense", progress=False)
    return tmp_path / "dense", recipe


def rescored(folder, score):
    results = json.loads((folder / "results.json").read_text())
    results["scores"]["accuracy"] = score
    (folder / "results.json").write_text(json.dumps(results))


def test_a_run_has_its_score_in_its_results_and_a_model_is_evaluated(run, tmp_path):
    folder, recipe = run
    taught = replace(recipe, distillation=DistillationConfig(str(folder)))
    measured = json.loads((folder / "results.json").read_text())["score"]
    assert teacher_score(taught, "accuracy", tmp_path) == measured
    model = replace(recipe, distillation=DistillationConfig(str(folder / "model")))
    assert teacher_score(model, "accuracy", tmp_path) == measured
    assert teacher_score(recipe, "accuracy", tmp_path) is None
    rescored(folder, 0.125)
    assert teacher_score(taught, "accuracy", tmp_path) == 0.125
    other = replace(recipe, training=replace(recipe.training, max_length=12))
    assert recorded_score(str(folder), other, "accuracy") is None


def test_a_weak_teacher_is_reported_before_and_after(run, files, tmp_path, caplog):
    folder, recipe = run
    rescored(folder, 1.0)
    weak = tmp_path / "weak"
    run_recipe(recipe, weak, progress=False)
    rescored(weak, 0.0)
    student = replace(
        files.recipe(),
        model=replace(recipe.model, name=str(folder)),
        distillation=DistillationConfig(str(weak)),
    )
    assert "below the 100.00% of the student that it begins with" in check_start(student, student.task.load())
    results = run_recipe(student, tmp_path / "student", progress=False)
    assert results["teacher_score"] == 0.0
    said = [text for text in results["warnings"] if text.startswith("the teacher's accuracy of 0.00%")]
    assert len(said) == (2 if results["score"] > 0 else 1)  # above 0 it is by more than a standard error
    assert all(text in caplog.text for text in said)


def test_a_difference_within_a_standard_error_is_none_to_warn_of(files):
    """Of 20 rows to validate on: sqrt(0.8 · 0.2 / 20) = 0.0894."""
    data = files.recipe().task.load()
    assert weak_teacher(0.8, 0.8, data, "now") is None
    assert weak_teacher(0.711, 0.8, data, "now") is None
    assert "the teacher's accuracy of 71.00% is below" in str(weak_teacher(0.71, 0.8, data, "now"))
