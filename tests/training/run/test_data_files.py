"""The data of a run are found again from another folder, and files that are not the run's are told."""

import json
import logging

import pytest

from fineprune.errors import FinepruneError
from fineprune.training.run.data_files import load_recipe, located, place_of
from fineprune.training.run.evaluate import evaluate_run
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe


@pytest.fixture
def ran(files, tmp_path, monkeypatch):
    """A run in the folder of its data, which its recipe names without that folder."""
    monkeypatch.chdir(files.folder)
    task = {"train": "train.tsv", "validation": "validation.jsonl"}
    run_recipe(
        files.recipe(task=task, training={"steps": 2, "evaluate_every": 2}), tmp_path / "run", progress=False
    )
    return tmp_path / "run"


def test_files_are_found_from_another_folder(ran, files, tmp_path, monkeypatch):
    recipe, note = load_recipe(ran)
    assert (recipe.task.validation, note) == ("validation.jsonl", None)
    monkeypatch.chdir(tmp_path)
    recipe, note = load_recipe(ran)
    assert recipe.task.train == str(files.folder / "train.tsv")
    assert recipe.task.validation == str(files.folder / "validation.jsonl")
    assert note is None
    results = json.loads((ran / "results.json").read_text())
    assert evaluate_run(ran) == pytest.approx(results["scores"])


def test_another_file_of_that_name_is_not_the_runs(ran, files, tmp_path, monkeypatch):
    (tmp_path / "validation.jsonl").write_text('{"text": "good", "label": "neg"}\n')
    monkeypatch.chdir(tmp_path)
    recipe, note = load_recipe(ran)
    assert (recipe.task.validation, note) == (str(files.folder / "validation.jsonl"), None)


def test_a_project_that_was_moved_is_searched_in_the_current_folder(ran, files, tmp_path, monkeypatch):
    moved = files.folder.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    recipe, note = load_recipe(ran)
    assert (recipe.task.validation, note) == ("validation.jsonl", None)


def test_a_file_that_has_changed_is_told(ran, files, tmp_path, monkeypatch, caplog):
    lines = (files.folder / "validation.jsonl").read_text().splitlines(keepends=True)
    (files.folder / "validation.jsonl").write_text("".join(lines[:10]))
    said = f"{files.folder / 'validation.jsonl'}: has another content than when {ran} was trained"
    assert load_recipe(ran)[1] == said
    monkeypatch.chdir(tmp_path)
    assert load_recipe(ran)[1] == said
    with caplog.at_level(logging.WARNING, "fineprune"):
        evaluate_run(ran)
    assert said in caplog.messages


def test_a_teacher_beside_the_data_is_found_with_them(ran, files, tmp_path, monkeypatch):
    (files.folder / "dense").mkdir()
    task = {"train": "train.tsv", "validation": "validation.jsonl"}
    recipe = files.recipe(task=task, distillation={"teacher": "dense"})
    assert located(recipe, ran)[0] == recipe
    monkeypatch.chdir(tmp_path)
    assert located(recipe, ran)[0].distillation.teacher == str(files.folder / "dense")
    on_the_hub = files.recipe(task=task, distillation={"teacher": "org/dense"})
    assert located(on_the_hub, ran)[0].distillation.teacher == "org/dense"


def test_runs_without_a_record_are_read_as_they_are(ran, tmp_path, monkeypatch):
    results = json.loads((ran / "results.json").read_text())
    del results["origin"]
    (ran / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    recipe, note = load_recipe(ran)
    assert (recipe.task.validation, note) == ("validation.jsonl", None)
    with pytest.raises(FinepruneError, match="no such file"):
        evaluate_run(ran)


def test_data_of_the_hub_have_no_digest(pretrained):
    task = {"kind": "classification", "hub": "org/data"}
    recipe = Recipe.from_dict({"model": pretrained, "task": task, "training": {"steps": 2}})
    assert place_of(recipe)["validation"] is None
