"""A recipe's run: what its folder holds, and what can be made of it."""

import json
import logging
import random
import re
import shutil
import sys
import warnings
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.integrations import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from fineprune import FinepruneError, FinepruneWarning, save_compact, summary
from fineprune.checkpoint.loading import open_model
from fineprune.tasks.modeling import build_model
from fineprune.tasks.text.prediction import predict
from fineprune.training.run.evaluate import evaluate_run
from fineprune.training.run.mask_snapshot import Record, Recorder, matrices_of
from fineprune.training.run.recipe import ModelConfig, Recipe
from fineprune.training.run.train import run_recipe

DONE = {"metrics.jsonl", "model", "recipe.yaml", "results.json", "weights.npz"}


# -- a whole run ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["magnitude", "movement", "soft_movement", "l0", None])
def test_a_run_leaves_its_folder_and_results(files, tmp_path, method, names):
    pruning = None if method is None else {"method": method, "density": 0.25}
    recipe = replace(files.recipe(), pruning=None)
    if pruning:
        recipe = files.recipe(pruning=pruning)
    out = tmp_path / "runs" / "one"
    results = run_recipe(recipe, out, progress=False)
    assert names(out) == (DONE if pruning else DONE - {"weights.npz"})
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
    dense = sum(tensor.nbytes for tensor in load_file(out / "model" / "model.safetensors").values())
    packed = results["packed_bytes"]
    assert results["dense_bytes"] == dense
    assert list(packed) == ["float32", "float16", "int8", "int8, embeddings int8"]
    if method is None:  # so small that a pruned model's tables may weigh more than its values
        assert dense == packed["float32"] > packed["float16"] > packed["int8"]
    assert packed["int8, embeddings int8"] < dense
    save_compact(model, tmp_path / "small", values="int8")
    small = load_file(tmp_path / "small" / "model.safetensors")
    assert packed["int8"] == sum(tensor.nbytes for tensor in small.values())


def test_the_record_is_of_the_model(files, tmp_path):
    results = run_recipe(files.recipe(), tmp_path / "run", progress=False)
    taken = Record.load(tmp_path / "run")
    model = open_model(tmp_path / "run").model
    for one, other in zip(taken.matrices, matrices_of(model), strict=True):
        assert (one.name, one.shape) == (other.name, other.shape)
        assert np.array_equal(one.picture, other.picture)
    weights = torch.cat([model.get_parameter(f"{m.name}.weight").flatten() for m in taken.matrices])
    assert len(taken.before) == results["total"] == len(weights)  # so small that the sample is all
    assert np.array_equal(np.where(taken.kept, taken.after, 0), weights.detach().numpy())
    start, _ = build_model(str(files.recipe().model.name), files.recipe().task.load())
    began = torch.cat([start.get_parameter(f"{m.name}.weight").flatten() for m in taken.matrices])
    assert np.array_equal(taken.before, began.detach().numpy())


def test_the_score_is_that_of_the_saved_model(files, tmp_path):
    results = run_recipe(files.recipe(), tmp_path / "run", progress=False)
    model, tokenizer, _ = open_model(tmp_path / "run")
    rows = [json.loads(line) for line in files.validation.read_text().splitlines()]
    answers = predict(model, tokenizer, [row["text"] for row in rows], max_length=16)
    right = sum(answer.label == row["label"] for answer, row in zip(answers, rows, strict=True))
    assert results["score"] == pytest.approx(right / 20)


def test_metrics_are_a_line_for_each_log(files, tmp_path, logs):
    run_recipe(files.recipe(), tmp_path / "run", progress=False)
    lines = logs(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [4, 8, 12]  # the last: the finalized model
    assert all("eval_accuracy" in line for line in evaluations)
    assert [line.get("density") is None for line in evaluations] == [False, False, True]


def test_runs_are_a_function_of_the_seed(files, tmp_path, assert_same_run, logs):
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


def test_group_by_length_bfloat16_layers_and_keep_best(files, tmp_path, logs):
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
        very = [(f"{name} {'very ' * int(value)}good", "very " * rng.randint(0, 4)) for value in values]
        lines = [f"{one}\t{two}bad\t{value}" for (one, two), value in zip(very, values, strict=True)]
        (files.folder / f"{name}.tsv").write_text("one\ttwo\tscore\n" + "\n".join(lines) + "\n")
    recipe = files.recipe(
        task={"validation": str(files.folder / "validation.tsv"), "text": ["one", "two"], "label": "score"}
    )
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    assert results["metric"] == "pearson"
    assert set(results["scores"]) == {"loss", "pearson", "spearman"}
    model = open_model(tmp_path / "run").model
    assert model.config.num_labels == 1
    scores = evaluate_run(tmp_path / "run")
    assert scores["pearson"] == pytest.approx(results["score"])


# -- evaluation -------------------------------------------------------------------------------


def test_evaluate_run_gives_the_results_again(finished):
    results = json.loads((finished / "results.json").read_text())
    scores = evaluate_run(finished)
    assert {name: scores[name] for name in results["scores"]} == pytest.approx(results["scores"])


def test_evaluate_run_gives_scores_and_nothing_else(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(evaluate_run(finished)) == set(results["scores"])


def test_evaluate_run_leaves_the_run_as_it_was(copied, names):
    evaluate_run(copied)
    assert names(copied) == DONE


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
    model, tokenizer, _ = open_model(tmp_path / "run")
    texts = ["good film", "bad film", "very a good", "bad"]
    labels = [answer.label for answer in predict(model, tokenizer, texts)]
    rows = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    other.write_text("text,label\n" + "\n".join(rows) + "\n")
    assert evaluate_run(tmp_path / "run", str(other))["accuracy"] == 1.0


def relabeled(run, folder, names):
    """The model of a run with other names of its labels."""
    shutil.copytree(run / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_evaluate_run_refuses_a_model_with_other_labels(finished, tmp_path):
    said = "its labels are 'bad', 'good', and those of .* are 'neg', 'pos'; give a model of the same task"
    with pytest.raises(FinepruneError, match=said):
        evaluate_run(finished, model_folder=relabeled(finished, tmp_path / "other", ["bad", "good"]))


def test_evaluate_run_refuses_a_model_with_fewer_labels(finished, copied):
    relabeled(finished, copied / "more", ["neg", "pos", "mixed"])
    shutil.rmtree(copied / "model")
    (copied / "more").rename(copied / "model")
    with pytest.raises(FinepruneError, match=r"'neg', 'pos', and those of .* are 'neg', 'pos', 'mixed'"):
        evaluate_run(copied, model_folder=finished / "model")


def test_evaluate_run_reads_labels_by_the_models_order(finished, tmp_path):
    own = evaluate_run(finished)["accuracy"]
    swapped = relabeled(finished, tmp_path / "swapped", ["pos", "neg"])
    assert evaluate_run(finished, model_folder=swapped)["accuracy"] == pytest.approx(1 - own)


def test_labels_that_are_numbers_are_taken_in_order(files, tmp_path, caplog):
    for path in (files.train, files.validation):
        text = path.read_text().replace('"neg"', '"0"').replace('"pos"', '"1"')
        path.write_text(text.replace("\tneg", "\t0").replace("\tpos", "\t1"))
    results = run_recipe(files.recipe(), tmp_path / "run", progress=False)
    other = relabeled(tmp_path / "run", tmp_path / "other", ["bad", "good"])
    assert evaluate_run(tmp_path / "run", model_folder=other)["accuracy"] == results["score"]
    assert any("'bad', 'good', and those of" in text and "in their order" in text for text in caplog.messages)


def test_evaluate_run_on_a_file_where_the_run_was_of_the_hub(files, copied):
    path = copied / "recipe.yaml"
    values = yaml.safe_load(path.read_text())
    values["task"] |= {"hub": "glue", "subset": "mnli", "validation_split": "validation_matched"}
    values["task"] |= {"train": None, "validation": None}
    path.write_text(yaml.safe_dump(values))
    assert "accuracy" in evaluate_run(copied, str(files.validation))


@pytest.mark.parametrize(
    ("there", "part"), [([], "name a run or a model folder"), (["recipe.yaml"], "not finished")]
)
def test_a_folder_without_a_model_is_one_line(files, tmp_path, there, part):
    for name in there:
        (tmp_path / name).write_text(files.recipe().to_yaml())
    with pytest.raises(FinepruneError, match=part):
        open_model(tmp_path)


def test_a_broken_model_is_one_line(copied):
    path = copied / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FinepruneError, match="cannot load the model") as error:
        open_model(copied)
    assert "\n" not in str(error.value)


def test_a_model_folder_loads_too(finished):
    model, tokenizer, _ = open_model(finished / "model")
    assert model.num_labels == 2
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(finished / "model"))


# -- what a run says about itself ------------------------------------------------------------------------


def test_warnings_are_in_the_results(files, tmp_path, monkeypatch):
    def warn(self):
        warnings.warn("this went wrong", FinepruneWarning, stacklevel=2)
        logging.getLogger("fineprune").warning("and %s", "that")
        return take(self)

    take = Recorder.take
    monkeypatch.setattr(Recorder, "take", warn)
    with pytest.warns(FinepruneWarning, match="this went wrong"):
        results = run_recipe(files.recipe(), tmp_path / "run", progress=False)
    before, *others = results["warnings"]
    assert "the model's head is new, and still random when pruning begins at step 1" in before
    assert others[:2] == ["this went wrong", "and that"]


def test_results_hold_the_plan(files, tmp_path):
    plan = run_recipe(files.recipe(), tmp_path / "run", progress=False)["plan"]
    assert {name: plan[name] for name in ("steps", "prune_from", "density", "at_final", "width")} == {
        "steps": 12, "prune_from": 1, "density": 0.25, "at_final": 4, "width": 8,
    }  # fmt: skip
    assert plan["new_head"]
    assert plan["final_travel"] < plan["travel"]
    on = replace(files.recipe(), model=ModelConfig(str(tmp_path / "run")))
    assert not run_recipe(on, tmp_path / "on", progress=False)["plan"]["new_head"]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_lines_without_a_terminal(files, tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr("fineprune.training.run.callbacks.SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    run_recipe(files.recipe(), tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith(("training: ", "step "))]
    if terminal:
        assert said == []
        return
    assert said[0] == "training: 12 steps, evaluated every 4"
    assert re.fullmatch(r"step 1 of 12(, loss .*)?, \d+ s left", said[1])
    assert any(re.fullmatch(r"step 4: accuracy [\d.]+%", line) for line in said)


class Tracker(TensorBoardCallback):
    """TensorBoard's callback without its package."""

    made: ClassVar[list["Tracker"]] = []

    def __init__(self):
        self.tb_writer, self.logging_dir, self.steps = None, None, []
        self.made.append(self)

    def on_train_begin(self, args, state, control, **kwargs):
        pass

    def on_log(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


def test_trackers_get_the_log_of_the_training(files, tmp_path, monkeypatch):
    monkeypatch.setattr(Tracker, "made", [])
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    training = files.recipe().to_dict()["training"] | {"report_to": ["tensorboard"]}
    run_recipe(files.recipe(training=training), tmp_path / "run", progress=False)
    (tracker,) = Tracker.made
    assert set(tracker.steps) == set(range(1, 13))
    assert tracker.logging_dir == str(tmp_path / "run" / "tensorboard")  # the checkpoints go at the end
    evaluate_run(tmp_path / "run")
    assert Tracker.made == [tracker]


def test_trackers_that_are_not_installed_are_refused(files, tmp_path, monkeypatch):
    def absent():
        raise RuntimeError("it requires wandb to be installed")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", absent)
    training = files.recipe().to_dict()["training"] | {"report_to": ["wandb"]}
    with pytest.raises(FinepruneError, match="report_to='wandb': it requires wandb to be installed"):
        run_recipe(files.recipe(training=training), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
