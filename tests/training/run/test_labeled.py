"""Runs of the kind embedding with labels: alone, beside the dense model, and continued after a stop."""

import json
from dataclasses import replace

import pytest
from sentence_folders import sentence_folder, texts

from fineprune.errors import FinepruneError
from fineprune.training.run import train as run_module
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

pytestmark = pytest.mark.filterwarnings("always::fineprune.errors.FinepruneWarning")  # of few texts


@pytest.fixture(scope="module")
def values(tmp_path_factory, pretrained):
    """The values of a recipe of twelve steps with pairs and scores."""
    folder = tmp_path_factory.mktemp("labeled")
    written = texts(120)
    rows = [f"{written[at]}\t{written[at + 1]}\t{at % 5}" for at in range(0, 120, 2)]
    (folder / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    return {
        "model": sentence_folder(pretrained, folder / "dense"),
        "task": {"kind": "embedding", "train": str(folder / "pairs.tsv"), "loss": "cosent"},
        "training": {
            "steps": 12,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "max_length": 8,
            "evaluate_every": 4,
            "group_by_length": True,
        },
        "pruning": {"method": "movement", "density": 0.25},
        "distillation": {"alpha": 1, "similarity": 10, "hidden": 1, "task": 0.5},
    }


def lines(run):
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if "loss" in line]


def test_labels_are_learned_beside_the_dense_model_and_a_stopped_run_goes_on(
    values, tmp_path, monkeypatch, assert_same_run
):
    recipe = Recipe.from_dict(values)
    results = run_recipe(recipe, tmp_path / "whole", progress=False)
    # 3 rows hold the last 6 of 120 texts, which are scored.
    assert (results["examples"]["train"], results["examples"]["validation"]) == (57, 6)
    assert all({"distillation", "similarity", "hidden"} <= line.keys() for line in lines(tmp_path / "whole"))
    assert lines(tmp_path / "whole")[0]["task_loss"] > 0

    class Stop(BaseException):
        pass

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(run_module.MetricsFile, "on_log", on_log)
        with pytest.raises(Stop):
            run_recipe(recipe, tmp_path / "stopped", progress=False)
    assert run_recipe(recipe, tmp_path / "stopped", resume=True, progress=False)["resumed_from_step"] == 4
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_labels_alone_need_no_teacher_in_the_steps(values, tmp_path):
    recipe = Recipe.from_dict(values | {"distillation": None})
    assert (recipe.distillation.alpha, recipe.distillation.task) == (0, 1)
    assert recipe.distillation.teacher == values["model"]  # for the scores
    recipe = replace(recipe, task=replace(recipe.task, matryoshka=(8, 4)))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    assert results["dense"]["scores"]["cosine"] == pytest.approx(1)
    first, *_, last = lines(tmp_path / "run")
    assert "distillation" not in first
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"distillation": {"alpha": 1}}, r"task: is 1 - alpha, which is 0, so task\.loss does nothing; give"),
        ({"distillation": {"task": 0}}, r"distillation\.task: is 0, so task\.loss does nothing"),
        ({"distillation": {"cache": True}}, "the answers to rows of several texts are not stored"),
        ({"distillation": {"temperature": 3}}, r"distillation\.temperature=3\.0: does nothing"),
        ({"training": {"batch_size": 1}}, r"batch_size=1: task\.loss compares the rows of a batch"),
        ({"dense": {}}, "dense: the dense model is given"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, changed, message):
    with pytest.raises(FinepruneError, match=message):
        Recipe.from_dict(values | changed)


def test_nothing_to_learn_is_refused(values):
    unlabeled = values | {"task": values["task"] | {"loss": None}}
    zero = {"alpha": 0, "similarity": 0, "hidden": 0}
    with pytest.raises(FinepruneError, match="alpha, similarity and hidden are 0, so there is nothing to"):
        Recipe.from_dict(unlabeled | {"distillation": zero})
    for name in zero:
        Recipe.from_dict(unlabeled | {"distillation": zero | {name: 1}})


def test_sizes_over_that_of_the_embedding_are_refused(values, tmp_path, refused_run):
    recipe = Recipe.from_dict(values | {"task": values["task"] | {"matryoshka": [16]}})
    refused_run(recipe, tmp_path / "run", "the model's embeddings have 8 numbers")
