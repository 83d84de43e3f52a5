"""How often a run is evaluated, and saved."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fineprune.training.run.recipe import Recipe
from fineprune.training.run.recipe_trainer import tenths_between
from fineprune.training.run.train import begin, run_recipe


@pytest.mark.parametrize(
    ("trained", "evaluated", "tenths"),
    [
        (600 * 32, 872, 1),  # SST-2: 7,848 of 57,600 passes forward
        (400 * 32, 3119, 5),  # MNLI: with one on the way and one at the end
        (1500 * 32, 3119, 2),
        (10, 1, 2),  # 10 of 30 passes would be a third; 5 are a sixth
        (10, 1000, 5),
        (0, 5, 5),
        (9, 0, 1),
    ],
)
def test_evaluations_take_a_fifth_of_the_passes(trained, evaluated, tenths):
    assert tenths_between(trained, evaluated) == tenths


@pytest.mark.parametrize(
    ("settings", "every", "saved"),
    [
        ({}, 10, 2),
        ({"keep_best": True}, 2, 2),
        ({"evaluate_every": 3}, 3, 3),
        ({"evaluate_every": 20}, 20, 20),
    ],
)
def test_what_is_asked_for_is_done(files, tmp_path, settings, every, saved):
    """20 steps of 4 examples, and as many validation texts as `files` has."""
    recipe = files.recipe(pruning=None)
    asked = {"steps": 20, "batch_size": 4, "evaluate_every": None} | settings
    recipe = replace(recipe, training=replace(recipe.training, **asked))
    job, trainer = begin(recipe, tmp_path, progress=False)
    assert trainer.args.eval_steps == (every or 2 * tenths_between(80, len(job.evaluation.rows)))
    assert trainer.args.save_steps == saved


@pytest.mark.parametrize("method", ["l0", "magnitude"])
def test_when_a_run_is_evaluated_does_not_change_it(files, tmp_path, method):
    """L0 draws its gates, and dropout its zeros, from the numbers that a data loader draws one of, too."""
    for every in (3, 16):
        training = {"steps": 16, "evaluate_every": every, "dropout": 0.1}
        recipe = files.recipe(training=training, pruning={"method": method})
        run_recipe(recipe, tmp_path / str(every), progress=False)
    often, once = (tmp_path / name / "model" / "model.safetensors" for name in ("3", "16"))
    assert load_file(often).keys() == load_file(once).keys()
    assert all(torch.equal(tensor, load_file(once)[name]) for name, tensor in load_file(often).items())


@pytest.mark.parametrize(
    ("asked", "evaluated"),
    [(None, "sdpa"), ("eager", "eager"), ("sdpa", "sdpa")],
)
def test_attention_of_steps_and_evaluations(files, tmp_path, asked, evaluated):
    recipe = files.recipe(training={"precision": "bfloat16", "dropout": 0}, pruning=None)
    recipe = replace(recipe, model=replace(recipe.model, attention=asked))
    _, trainer = begin(recipe, tmp_path, progress=False)
    steps, seen = trainer.model.config._attn_implementation, set()
    trainer.model.bert.register_forward_hook(lambda module, *_: seen.add(module.config._attn_implementation))
    trainer.evaluate()
    assert (steps, seen) == (asked or "eager", {evaluated})


@pytest.mark.parametrize("cache", [False, True])
def test_answers_before_the_first_step_are_announced(files, make_model, tokenizer, tmp_path, capsys, cache):
    """They take minutes of a large teacher."""
    make_model(id2label={0: "neg", 1: "pos"}).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    section = {"teacher": str(tmp_path / "teacher"), "cache": cache}
    recipe = Recipe.from_dict(files.recipe().to_dict() | {"distillation": section})
    capsys.readouterr()
    begin(recipe, tmp_path / "run", progress=True)
    said = "teacher: answers 48 rows, unless these answers are stored, then the first step\n"
    assert (said in capsys.readouterr().err) == cache
    begin(recipe, tmp_path / "run", progress=False)
    assert "teacher: answers" not in capsys.readouterr().err
