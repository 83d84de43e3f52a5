"""A run that cannot be says so in one line, and leaves what it finds as it was."""

import re
import shutil

import pytest
from transformers import Trainer

from fineprune import FinepruneError
from fineprune.checkpoint.model_folder import MODEL_GONE
from fineprune.pruning.distributed import agreement
from fineprune.training.run import finishing
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

# -- what is there already --------------------------------------------------------------------


def test_a_second_run_into_the_folder_is_refused(copied, refused_run):
    before = (copied / "results.json").read_bytes()
    refused_run(Recipe.load(copied / "recipe.yaml"), copied, str(copied), "another run", "--resume")
    assert (copied / "results.json").read_bytes() == before


def test_a_folder_with_something_else_in_it_is_refused(files, tmp_path, refused_run, names):
    out = tmp_path / "papers"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        refused_run(files.recipe(), out, str(out), "not a run", resume=resume)
    assert names(out) == {"thesis.txt"}


def test_a_file_is_refused(files, tmp_path, refused_run):
    (tmp_path / "run").write_text("")
    refused_run(files.recipe(), tmp_path / "run", "is a file")


def test_a_finished_run_whose_model_is_gone_says_so_and_is_trained_anew(copied):
    recipe, weights = Recipe.load(copied / "recipe.yaml"), copied / "model" / "model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(copied / "model")
    with pytest.raises(FinepruneError, match=re.escape(f"no model in it; {MODEL_GONE}")):
        run_recipe(recipe, copied, resume=True, progress=False)
    (copied / "results.json").unlink()
    run_recipe(recipe, copied, resume=True, progress=False)
    assert weights.read_bytes() == before


def test_resume_of_another_recipe_is_refused(copied, refused_run):
    before = (copied / "results.json").read_bytes()
    for change, part in (
        ("pruning.density=0.5", "another recipe (pruning.density: 0.25 there, 0.5 now)"),
        ("training.seed=6", "another recipe (training.seed: 0 there, 6 now)"),
    ):
        refused_run(Recipe.load(copied / "recipe.yaml", [change]), copied, part, resume=True)
    assert (copied / "results.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", '{"score": 0.'])
def test_broken_results_are_one_line(copied, content, refused_run):
    (copied / "results.json").write_text(content)
    refused_run(Recipe.load(copied / "recipe.yaml"), copied, "results.json", resume=True)


@pytest.mark.parametrize("inside", ["evaluation_loop", "scores"])
def test_another_process_that_ends_in_the_last_evaluation(files, tmp_path, refused_run, monkeypatch, inside):
    """Each process would else end with the traceback of the network's error."""

    def lost(*arguments, **more):
        monkeypatch.setattr(agreement, "several", lambda: True)
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:537] Connection reset by peer")

    owner = finishing if inside == "scores" else Trainer
    monkeypatch.setattr(owner, inside, lost)
    refused_run(files.recipe(training={"steps": 2}), tmp_path / "run", "another process of this training")
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_broken_recipe_in_the_folder_is_one_line(files, tmp_path, refused_run):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("model: [")
    refused_run(files.recipe(), out, "recipe.yaml", "not YAML", resume=True)


# -- what cannot work leaves nothing ----------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "validation"])
@pytest.mark.parametrize(
    "damage", ["missing", "empty", "header only", "no column", "not UTF-8", "unknown label"]
)
def test_bad_data_leaves_nothing_behind(files, tmp_path, name, damage, refused_run):
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
    refused_run(files.recipe(task={name: str(path), "labels": ["neg", "pos"]}), tmp_path / "run", "bad.tsv")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"training": {"max_length": 64}}, "max_length=64"),
        ({"training": {"max_length": 33}}, "at most 32 tokens"),
    ],
)
def test_a_model_that_cannot_work_leaves_nothing_behind(files, tmp_path, sections, part, refused_run):
    refused_run(files.recipe(**sections), tmp_path / "run", part)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pruning", "part"),
    [
        ({"warmup": 8, "cooldown": 4}, "at least 13 steps"),
        ({"targets": ["qurey"]}, "query"),
    ],
)
def test_pruning_that_cannot_work_leaves_nothing_behind(files, tmp_path, pruning, part, refused_run):
    refused_run(files.recipe(pruning=pruning), tmp_path / "run", part)
    assert not (tmp_path / "run").exists()
    run_recipe(files.recipe(), tmp_path / "run", progress=False)  # the same folder, the setting put right


def test_the_settings_of_logging_are_given_back(files, tmp_path, refused_run):
    from transformers import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    refused_run(files.recipe(training={"max_length": 64}), tmp_path / "run", "max_length")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run_recipe(files.recipe(training={"steps": 3, "evaluate_every": 3}), tmp_path / "run", progress=False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
