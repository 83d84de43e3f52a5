"""A recipe's run: what its folder holds, and that a killed run is continued as if nothing had been."""

import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fineprune import FinepruneError, summary
from fineprune.tasks.prediction import predict
from fineprune.training import checkpoints
from fineprune.training import run as run_module
from fineprune.training.recipe import Recipe
from fineprune.training.run import evaluate_run, load_run_model, run_recipe

TIMING = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
DONE = ["metrics.jsonl", "model", "recipe.yaml", "results.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def logs(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without times and without the closing line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in TIMING}
        for line in lines
        if "train_runtime" not in line
    ]


def lasting(results: dict) -> dict:
    """What of the results does not depend on how the run went."""
    return {name: value for name, value in results.items() if name not in ("seconds", "resumed_from_step")}


def assert_same_run(one: Path, other: Path) -> None:
    assert names(one) == names(other) == DONE
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    assert lasting(results[0]) == lasting(results[1])
    assert logs(one) == logs(other)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (one, other)]
    assert weights[0] == weights[1]
    assert (one / "recipe.yaml").read_text() == (other / "recipe.yaml").read_text()


def refused(recipe, out: Path, *parts: str, resume: bool = False) -> None:
    """The run fails with one line that has these parts."""
    with pytest.raises(FinepruneError) as error:
        run_recipe(recipe, out, resume=resume, progress=False)
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# -- a whole run ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["magnitude", "movement", "soft_movement", "l0", None])
def test_a_run_leaves_its_folder_and_results(files, tmp_path, method):
    pruning = None if method is None else {"method": method, "density": 0.25}
    recipe = replace(files.recipe(), pruning=None)
    if pruning:
        recipe = files.recipe(pruning=pruning)
    out = tmp_path / "runs" / "one"
    results = run_recipe(recipe, out, progress=False)
    assert names(out) == DONE
    assert json.loads((out / "results.json").read_text()) == results
    assert Recipe.load(out / "recipe.yaml") == recipe
    assert results["recipe"] == recipe.to_dict()
    assert results["metric"] == "accuracy"
    assert results["score"] == results["scores"]["accuracy"]
    assert set(results["scores"]) == {"loss", "accuracy", "f1", "matthews"}
    assert results["steps"] == 12
    assert results["resumed_from_step"] == 0
    assert results["examples"] == {"train": 48, "validation": 20}
    assert results["environment"]["torch"] == torch.__version__

    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    left = summary(model)
    assert (results["density"], results["kept"], results["total"]) == (left.density, left.kept, left.total)
    assert results["parameters"] == left.parameters == sum(value.numel() for value in model.parameters())
    assert left.density == (1.0 if method is None else 0.25)
    assert model.config.id2label == {0: "neg", 1: "pos"}


def test_the_score_is_that_of_the_saved_model(files, tmp_path):
    results = run_recipe(files.recipe(), tmp_path / "run", progress=False)
    model, tokenizer = load_run_model(tmp_path / "run")
    rows = [json.loads(line) for line in files.validation.read_text().splitlines()]
    answers = predict(model, tokenizer, [row["text"] for row in rows], max_length=16)
    right = sum(answer.label == row["label"] for answer, row in zip(answers, rows, strict=True))
    assert results["score"] == pytest.approx(right / 20)


def test_metrics_are_a_line_for_each_log(files, tmp_path):
    run_recipe(files.recipe(), tmp_path / "run", progress=False)
    lines = logs(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [4, 8, 12, 12]  # the last: the finalized model
    assert all("eval_accuracy" in line for line in evaluations)
    assert [line.get("density") for line in evaluations][2:] == [0.25, None]
    assert evaluations[2]["eval_loss"] == pytest.approx(evaluations[3]["eval_loss"])


def test_runs_are_a_function_of_the_seed(files, tmp_path):
    recipe = files.recipe()
    run_recipe(recipe, tmp_path / "one", progress=False)
    torch.manual_seed(1234)  # nothing of the process before counts
    run_recipe(recipe, tmp_path / "two", progress=False)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    run_recipe(files.recipe(training={"seed": 6}), tmp_path / "three", progress=False)
    assert logs(tmp_path / "three") != logs(tmp_path / "one")


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"steps": None, "epochs": 2}, 12),
        ({"steps": None, "epochs": 1.5, "batch_size": 4, "accumulation": 2}, 9),
        ({"steps": None, "epochs": 2, "batch_size": 10}, 10),  # 9.6
    ],
)
def test_epochs_become_steps(files, tmp_path, training, steps):
    results = run_recipe(files.recipe(training=training), tmp_path / "run", progress=False)
    assert results["steps"] == steps


def test_group_by_length_bfloat16_layers_and_keep_best(files, tmp_path):
    recipe = files.recipe(
        training={"group_by_length": True, "precision": "bfloat16", "keep_best": True, "evaluate_every": 1},
    )
    recipe = replace(recipe, model=replace(recipe.model, layers=1))
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    assert results["total"] == 512  # one block of two
    assert results["density"] == 0.25
    final = [
        line["eval_accuracy"] for line in logs(tmp_path / "run") if "eval_loss" in line and line["step"] >= 8
    ]
    assert results["score"] == pytest.approx(max(final))


def test_regression(files, tmp_path):
    rng = random.Random(2)
    for name, count in (("train", 48), ("validation", 20)):
        values = [round(rng.random() * 5, 2) for _ in range(count)]
        lines = [f"{'very ' * int(value)}good\t{'very ' * rng.randint(0, 4)}bad\t{value}" for value in values]
        (files.folder / f"{name}.tsv").write_text("one\ttwo\tscore\n" + "\n".join(lines) + "\n")
    recipe = files.recipe(
        task={"validation": str(files.folder / "validation.tsv"), "text": ["one", "two"], "label": "score"}
    )
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    assert results["metric"] == "pearson"
    assert set(results["scores"]) == {"loss", "pearson", "spearman"}
    model, _ = load_run_model(tmp_path / "run")
    assert model.config.num_labels == 1
    scores = evaluate_run(tmp_path / "run")
    assert scores["pearson"] == pytest.approx(results["score"])


# -- evaluation -------------------------------------------------------------------------------


def test_evaluate_run_gives_the_results_again(files, tmp_path):
    results = run_recipe(files.recipe(), tmp_path / "run", progress=False)
    scores = evaluate_run(tmp_path / "run")
    assert {name: scores[name] for name in results["scores"]} == pytest.approx(results["scores"])


def test_evaluate_run_gives_scores_and_nothing_else(files, tmp_path):
    results = run_recipe(files.recipe(), tmp_path / "run", progress=False)
    assert set(evaluate_run(tmp_path / "run")) == set(results["scores"])


def test_evaluate_run_leaves_the_run_as_it_was(files, tmp_path):
    run_recipe(files.recipe(), tmp_path / "run", progress=False)
    evaluate_run(tmp_path / "run")
    assert names(tmp_path / "run") == DONE


def test_nothing_is_printed(files, tmp_path, capfd):
    run_recipe(files.recipe(), tmp_path / "run", progress=False)
    evaluate_run(tmp_path / "run")
    printed = capfd.readouterr()
    assert printed.out == ""


def test_evaluate_run_on_another_file(files, tmp_path):
    run_recipe(files.recipe(), tmp_path / "run", progress=False)
    files.train.unlink()  # not needed
    files.validation.unlink()
    other = files.folder / "other.csv"
    model, tokenizer = load_run_model(tmp_path / "run")
    texts = ["good film", "bad film", "very a good", "bad"]
    labels = [answer.label for answer in predict(model, tokenizer, texts)]
    rows = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    other.write_text("text,label\n" + "\n".join(rows) + "\n")
    assert evaluate_run(tmp_path / "run", str(other))["accuracy"] == 1.0


def test_evaluate_run_on_a_file_where_the_run_was_of_the_hub(files, tmp_path):
    run_recipe(files.recipe(), tmp_path / "run", progress=False)
    path = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(path.read_text())
    values["task"] |= {"hub": "glue", "subset": "mnli", "validation_split": "validation_matched"}
    values["task"] |= {"train": None, "validation": None}
    path.write_text(yaml.safe_dump(values))
    assert "accuracy" in evaluate_run(tmp_path / "run", str(files.validation))


@pytest.mark.parametrize(
    ("there", "part"), [([], "name a run or a model folder"), (["recipe.yaml"], "not finished")]
)
def test_a_folder_without_a_model_is_one_line(files, tmp_path, there, part):
    for name in there:
        (tmp_path / name).write_text(files.recipe().to_yaml())
    with pytest.raises(FinepruneError, match=part):
        load_run_model(tmp_path)


def test_a_broken_model_is_one_line(files, tmp_path):
    run_recipe(files.recipe(), tmp_path / "run", progress=False)
    path = tmp_path / "run" / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FinepruneError, match="cannot load the model") as error:
        load_run_model(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_model_folder_loads_too(files, tmp_path):
    run_recipe(files.recipe(), tmp_path / "run", progress=False)
    model, tokenizer = load_run_model(tmp_path / "run" / "model")
    assert model.num_labels == 2
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(tmp_path / "run" / "model"))


# -- killed and continued ---------------------------------------------------------------------

KILL = """
import os, sys
import torch
torch.set_num_threads(1)
from transformers import TrainerCallback
from fineprune.training import checkpoints, run
from fineprune.training.recipe import Recipe

where, recipe, out = sys.argv[1:]
kind, _, name = where.partition(":")

def die_in(module, function, test):
    own = getattr(module, function)
    def wrapped(*args, **kwargs):
        if test(*args):
            os._exit(9)
        return own(*args, **kwargs)
    setattr(module, function, wrapped)

if kind == "step":
    own = run._MetricsFile.on_log
    def on_log(self, args, state, control, **kwargs):
        own(self, args, state, control, **kwargs)
        if state.global_step == int(name):
            os._exit(9)
    run._MetricsFile.on_log = on_log
elif kind == "seal":
    die_in(checkpoints, "seal", lambda folder, state: folder.name == name)
elif kind == "write":
    die_in(run, "write_text" if name == "recipe.yaml" else "write_json", lambda path, _: path.name == name)
elif kind == "model":
    die_in(run, "replace_folder", lambda new, place: True)
run.run_recipe(Recipe.load(recipe), out, progress=False)
"""


def killed(recipe: Recipe, out: Path, where: str) -> None:
    """Run the recipe in a process that dies there as by kill -9: no handler, no clean-up."""
    file = out.with_name("recipe to kill.yaml")
    file.write_text(recipe.to_yaml())
    process = subprocess.run(
        [sys.executable, "-c", KILL, where, str(file), str(out)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 9, process.stderr


@pytest.mark.parametrize(
    ("where", "step"),
    [
        ("step:2", 0),  # before the first checkpoint
        ("step:7", 4),
        ("seal:checkpoint-8", 4),  # everything is written but the manifest
        ("model:", 12),  # trained and scored, the model not in its place
        ("write:results.json", 12),
    ],
)
def test_a_killed_run_is_continued_as_if_it_had_not_been(files, tmp_path, where, step):
    recipe = files.recipe(pruning={"method": "soft_movement", "density": 0.25})
    run_recipe(recipe, tmp_path / "whole", progress=False)
    out = tmp_path / "killed"
    killed(recipe, out, where)
    assert not (out / "results.json").exists()
    refused(recipe, out, "--resume")
    results = run_recipe(recipe, out, resume=True, progress=False)
    assert results["resumed_from_step"] == step
    assert_same_run(tmp_path / "whole", out)


def test_a_run_killed_before_its_recipe_was_written_is_begun_again(files, tmp_path):
    out = tmp_path / "killed"
    killed(files.recipe(), out, "write:recipe.yaml")
    assert run_recipe(files.recipe(), out, resume=True, progress=False)["steps"] == 12


class Interrupt(BaseException):
    """What Ctrl-C raises, without being pytest's own."""


@pytest.fixture
def interrupted(files, tmp_path, monkeypatch):
    """`interrupted(recipe, step)`: a run folder whose training stopped there."""

    def make(recipe: Recipe, step: int) -> Path:
        def on_log(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Interrupt

        out = tmp_path / "interrupted"
        with monkeypatch.context() as patch:
            patch.setattr(run_module._MetricsFile, "on_log", on_log)
            with pytest.raises(Interrupt):
                run_recipe(recipe, out, progress=False)
        return out

    return make


@pytest.mark.parametrize("method", ["magnitude", "movement", "l0", None])
@pytest.mark.parametrize("group_by_length", [False, True])
def test_an_interrupted_run_is_continued_in_its_second_epoch(
    files, tmp_path, interrupted, method, group_by_length
):
    training = {"group_by_length": group_by_length, "batch_size": 4, "accumulation": 2}
    recipe = files.recipe(training=training, pruning=method and {"method": method, "density": 0.25})
    if method is None:
        recipe = replace(recipe, pruning=None)
    out = interrupted(recipe, 9)
    results = run_recipe(recipe, out, resume=True, progress=False)
    assert results["resumed_from_step"] == 8
    run_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", out)


def test_keep_best_survives_an_interruption(files, tmp_path, interrupted):
    recipe = files.recipe(training={"keep_best": True, "evaluate_every": 1, "steps": 16})
    out = interrupted(recipe, 15)
    run_recipe(recipe, out, resume=True, progress=False)
    run_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", out)


def test_a_broken_newest_checkpoint_is_passed_over(files, tmp_path, interrupted, caplog):
    recipe = files.recipe()
    out = interrupted(recipe, 9)
    newest = out / "checkpoints" / "checkpoint-8" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level("WARNING", "fineprune"):
        results = run_recipe(recipe, out, resume=True, progress=False)
    assert results["resumed_from_step"] == 4
    assert "checkpoint-8: broken checkpoint (model.safetensors" in caplog.text
    run_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", out)


def test_without_a_whole_checkpoint_nothing_is_lost_in_silence(files, interrupted):
    recipe = files.recipe()
    out = interrupted(recipe, 9)
    for name in ("checkpoint-4", "checkpoint-8"):
        (out / "checkpoints" / name / "optimizer.pt").unlink()
    refused(recipe, out, "no whole checkpoint is left", resume=True)
    assert names(out / "checkpoints") == ["checkpoint-4", "checkpoint-8"]


def test_a_foreign_folder_among_the_checkpoints_is_no_matter(files, interrupted):
    recipe = files.recipe()
    out = interrupted(recipe, 9)
    (out / "checkpoints" / "checkpoint-old").mkdir()
    assert run_recipe(recipe, out, resume=True, progress=False)["resumed_from_step"] == 8


def test_two_checkpoints_are_kept_at_most(files, interrupted):
    out = interrupted(files.recipe(training={"evaluate_every": 2}), 11)
    assert names(out / "checkpoints") == ["checkpoint-10", "checkpoint-8"]
    for name in names(out / "checkpoints"):
        checkpoints.verify(out / "checkpoints" / name)


# -- what is there already --------------------------------------------------------------------


def test_resume_of_a_finished_run_returns_its_results(files, tmp_path):
    recipe = files.recipe()
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    files.train.unlink()  # not even read
    assert run_recipe(recipe, tmp_path / "run", resume=True, progress=False) == results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_resume_where_nothing_is_begins(files, tmp_path):
    (tmp_path / "run").mkdir()
    assert run_recipe(files.recipe(), tmp_path / "run", resume=True, progress=False)["steps"] == 12


def test_a_second_run_into_the_folder_is_refused(files, tmp_path):
    out = tmp_path / "run"
    run_recipe(files.recipe(), out, progress=False)
    before = (out / "results.json").read_bytes()
    refused(files.recipe(), out, str(out), "another run", "--resume")
    assert (out / "results.json").read_bytes() == before


def test_a_folder_with_something_else_in_it_is_refused(files, tmp_path):
    out = tmp_path / "papers"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        refused(files.recipe(), out, str(out), "not a run", resume=resume)
    assert names(out) == ["thesis.txt"]


def test_a_file_is_refused(files, tmp_path):
    (tmp_path / "run").write_text("")
    refused(files.recipe(), tmp_path / "run", "is a file")


def test_resume_of_another_recipe_is_refused(files, tmp_path):
    out = tmp_path / "run"
    run_recipe(files.recipe(), out, progress=False)
    before = (out / "results.json").read_bytes()
    refused(
        files.recipe(pruning={"density": 0.5}), out, "another recipe", "pruning: ", "0.25", "0.5", resume=True
    )
    refused(files.recipe(training={"seed": 6}), out, "another recipe", "training: ", resume=True)
    assert (out / "results.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", '{"score": 0.'])
def test_broken_results_are_one_line(files, tmp_path, content):
    out = tmp_path / "run"
    run_recipe(files.recipe(), out, progress=False)
    (out / "results.json").write_text(content)
    refused(files.recipe(), out, "results.json", resume=True)


def test_a_broken_recipe_in_the_folder_is_one_line(files, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("model: [")
    refused(files.recipe(), out, "recipe.yaml", "not YAML", resume=True)


# -- what cannot work leaves nothing ----------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "validation"])
@pytest.mark.parametrize(
    "damage", ["missing", "empty", "header only", "no column", "not UTF-8", "unknown label"]
)
def test_bad_data_leaves_nothing_behind(files, tmp_path, name, damage):
    path = files.folder / "bad.tsv"
    contents = {
        "empty": b"",
        "header only": b"text\tlabel\n",
        "no column": b"sentence\tlabel\ngood\tpos\nbad\tneg\n",
        "not UTF-8": b"text\tlabel\ngood\xff\tpos\nbad\tneg\n",
        "unknown label": b"text\tlabel\ngood\tpos\nbad\tnone\n",
    }
    if damage in contents:
        path.write_bytes(contents[damage])
    refused(files.recipe(task={name: str(path), "labels": ["neg", "pos"]}), tmp_path / "run", "bad.tsv")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"training": {"max_length": 64}}, "max_length=64"),
        ({"training": {"max_length": 33}}, "at most 32 tokens"),
    ],
)
def test_a_model_that_cannot_work_leaves_nothing_behind(files, tmp_path, sections, part):
    refused(files.recipe(**sections), tmp_path / "run", part)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pruning", "part"),
    [
        ({"warmup": 8, "cooldown": 4}, "at least 13 steps"),
        ({"targets": ["qurey"]}, "query"),
    ],
)
def test_pruning_that_cannot_work_leaves_nothing_behind(files, tmp_path, pruning, part):
    refused(files.recipe(pruning=pruning), tmp_path / "run", part)
    assert not (tmp_path / "run").exists()
    run_recipe(files.recipe(), tmp_path / "run", progress=False)  # the same folder, the setting put right


def test_the_settings_of_logging_are_given_back(files, tmp_path):
    from transformers import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    refused(files.recipe(training={"max_length": 64}), tmp_path / "run", "max_length")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run_recipe(files.recipe(training={"steps": 3, "evaluate_every": 3}), tmp_path / "run", progress=False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
