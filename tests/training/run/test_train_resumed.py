"""A killed run is continued as if nothing had been."""

import json
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from filelock import FileLock

import fineprune
from fineprune.training.host import sealing
from fineprune.training.run import train as run_module
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

KILL = """
import os, sys
import torch
torch.set_num_threads(1)
from transformers import TrainerCallback
from fineprune.training.host import sealing
from fineprune.training.run import finishing, run_folder, train
from fineprune.training.run.recipe import Recipe

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
    own = train.MetricsFile.on_log
    def on_log(self, args, state, control, **kwargs):
        own(self, args, state, control, **kwargs)
        if state.global_step == int(name):
            os._exit(9)
    train.MetricsFile.on_log = on_log
elif kind == "seal":
    die_in(sealing, "seal", lambda folder, *others: folder.name == name)
elif kind == "write":
    place = (train, "write_text") if name == "recipe.yaml" else (finishing, "write_json")
    die_in(*place, lambda path, _: path.name == name)
elif kind == "model":
    die_in(run_folder, "replace_folder", lambda new, place: True)
train.run_recipe(Recipe.load(recipe), out, progress=False)
"""


def killed(recipe: Recipe, out: Path, where: str) -> None:
    """Run the recipe in a process that dies there as by kill -9: no handler, no clean-up."""
    file = out.with_name("recipe to kill.yaml")
    file.write_text(recipe.to_yaml())
    process = forked.python(KILL, where, file, out)
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
def test_a_killed_run_is_continued_as_if_it_had_not_been(
    files, tmp_path, where, step, refused_run, assert_same_run
):
    recipe = files.recipe(pruning={"method": "soft_movement", "density": 0.25})
    run_recipe(recipe, tmp_path / "whole", progress=False)
    out = tmp_path / "killed"
    killed(recipe, out, where)
    assert not (out / "results.json").exists()
    refused_run(recipe, out, "--resume")
    results = run_recipe(recipe, out, resume=True, progress=False)
    assert results["resumed_from_step"] == step
    assert_same_run(tmp_path / "whole", out)


def test_seconds_are_those_of_all_calls(files, tmp_path):
    out = tmp_path / "killed"
    killed(files.recipe(), out, "step:7")
    checkpoint = out / "checkpoints" / "checkpoint-4"
    pruner, run = sealing.verify(checkpoint), sealing.run_of(checkpoint)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    attributes = state["stateful_callbacks"]["Clock"]["attributes"]
    assert 0 < attributes["seconds"] < 1000
    attributes["seconds"] = 1000.0
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (checkpoint / sealing.MANIFEST).unlink()
    sealing.seal(checkpoint, pruner, run)
    assert 1000 < run_recipe(files.recipe(), out, resume=True, progress=False)["seconds"] < 2000
    assert run_recipe(files.recipe(), tmp_path / "whole", progress=False)["seconds"] < 1000


def test_a_run_killed_before_its_recipe_was_written_is_begun_again(files, tmp_path):
    out = tmp_path / "killed"
    killed(files.recipe(), out, "write:recipe.yaml")
    assert run_recipe(files.recipe(), out, resume=True, progress=False)["steps"] == 12


class Interrupt(BaseException):
    """What Ctrl-C raises, without being pytest's own."""


def test_files_that_a_kill_left_half_written_are_removed_at_the_end(files, tmp_path, assert_same_run):
    recipe, out = files.recipe(), tmp_path / "killed"
    killed(recipe, out, "seal:checkpoint-8")
    for name in ("recipe.yaml", "metrics.jsonl", "weights.npz", "results.json"):
        (out / f".{name}.77.tmp").write_text("{")
    run_recipe(recipe, out, resume=True, progress=False)
    run_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", out)


@pytest.fixture
def interrupted(files, tmp_path, monkeypatch):
    """`interrupted(recipe, step)`: a run folder whose training stopped there."""

    def make(recipe: Recipe, step: int) -> Path:
        def on_log(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Interrupt

        out = tmp_path / "interrupted"
        with monkeypatch.context() as patch:
            patch.setattr(run_module.MetricsFile, "on_log", on_log)
            with pytest.raises(Interrupt):
                run_recipe(recipe, out, progress=False)
        return out

    return make


@pytest.mark.parametrize(
    ("method", "group_by_length"), [("magnitude", True), ("movement", False), ("l0", True), (None, False)]
)
def test_an_interrupted_run_is_continued_in_its_second_epoch(
    files, tmp_path, interrupted, method, group_by_length, assert_same_run
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


def test_keep_best_survives_an_interruption(files, tmp_path, interrupted, assert_same_run):
    recipe = files.recipe(training={"keep_best": True, "evaluate_every": 1, "steps": 16})
    out = interrupted(recipe, 15)
    run_recipe(recipe, out, resume=True, progress=False)
    run_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", out)


def test_a_broken_newest_checkpoint_is_passed_over(files, tmp_path, interrupted, caplog, assert_same_run):
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


def test_without_a_whole_checkpoint_nothing_is_lost_in_silence(files, interrupted, refused_run, names):
    recipe = files.recipe()
    out = interrupted(recipe, 9)
    for name in ("checkpoint-4", "checkpoint-8"):
        (out / "checkpoints" / name / "optimizer.pt").unlink()
    refused_run(recipe, out, "no whole checkpoint is left", resume=True)
    assert names(out / "checkpoints") == {"checkpoint-4", "checkpoint-8"}


def test_a_foreign_folder_among_the_checkpoints_is_no_matter(files, interrupted):
    recipe = files.recipe()
    out = interrupted(recipe, 9)
    (out / "checkpoints" / "checkpoint-old").mkdir()
    assert run_recipe(recipe, out, resume=True, progress=False)["resumed_from_step"] == 8


def test_two_checkpoints_are_kept_at_most(files, interrupted, names):
    out = interrupted(files.recipe(training={"evaluate_every": 2}), 11)
    assert names(out / "checkpoints") == {"checkpoint-10", "checkpoint-8"}
    for name in names(out / "checkpoints"):
        sealing.verify(out / "checkpoints" / name)


def test_resume_of_a_finished_run_returns_its_results(files, tmp_path):
    recipe = files.recipe()
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    files.train.unlink()  # not even read
    assert run_recipe(recipe, tmp_path / "run", resume=True, progress=False) == results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_resume_of_a_finished_run_removes_what_a_kill_at_its_end_left(files, tmp_path, names):
    recipe, out = files.recipe(), tmp_path / "run"
    results = run_recipe(recipe, out, progress=False)
    before = names(out)
    (out / "checkpoints" / "checkpoint-12").mkdir(parents=True)
    (out / ".lock").touch()
    (out / ".results.json.77.tmp").touch()
    with FileLock(out / ".lock"):  # of a process that is at its very end
        assert run_recipe(recipe, out, resume=True, progress=False) == results
    assert (out / "checkpoints").exists()
    assert run_recipe(recipe, out, resume=True, progress=False) == results
    assert names(out) == before


def test_resume_where_nothing_is_begins(files, tmp_path):
    (tmp_path / "run").mkdir()
    assert run_recipe(files.recipe(), tmp_path / "run", resume=True, progress=False)["steps"] == 12


def test_a_shrunk_model_is_pruned_further_and_continued(
    files, tmp_path, interrupted, pretrained, assert_same_run
):
    """Its checkpoints have shapes of their own, too."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(pretrained)
    with torch.no_grad():
        for number, layer in enumerate(model.encoder.layer):
            layer.output.dense.weight[:, 8 + number :] = 0
            layer.attention.output.dense.weight[:, : number * 4] = 0
    assert not fineprune.shrink(model).ordinary
    model.save_pretrained(tmp_path / "shrunk")
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(tmp_path / "shrunk")
    recipe = files.recipe(model=str(tmp_path / "shrunk"))
    out = interrupted(recipe, 9)
    assert run_recipe(recipe, out, resume=True, progress=False)["resumed_from_step"] == 8
    run_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", out)
    pruned = fineprune.load(out / "model")
    assert pruned.bert.encoder.layer[1].intermediate.dense.weight.shape[0] == 9
    assert fineprune.summary(pruned).density == pytest.approx(0.25, abs=0.01)
