"""A last stage, in which the pruned and smaller model trains on."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import tiny_bert
from training.run.test_train_resumed import killed
from transformers import AutoModelForSequenceClassification

from fineprune import FinepruneError
from fineprune.pruning.targets import find_targets
from fineprune.training.run.filling import fill_zeros
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

HYBRID = {"attention": [4, 4], "feed_forward": "neuron"}


@pytest.fixture
def refined(files):
    """`refined(refine, **pruning)`: dense, pruned and refined in 3, 12 and 14 steps."""

    def make(refine, **pruning):
        pruning = {
            "method": "magnitude",
            "density": 0.5,
            "warmup": 1,
            "cooldown": 3,
            "structure": HYBRID,
        } | pruning
        values = files.recipe().to_dict() | {
            "pruning": pruning,
            "dense": {"steps": 3, "learning_rate": 3e-3},
            "distillation": {"alpha": 0.9},
            "refine": {"steps": 14, "learning_rate": 1e-3, "evaluate_every": 7} | refine,
        }
        return Recipe.from_dict(values)

    return make


def zeros(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    return sum(int((module.weight == 0).sum()) for module in find_targets(model).values())


def test_the_stages(refined):
    recipe = refined({"fill": 0.01})
    name, before = recipe.stage_before
    assert (name, before.refine, before.dense) == ("pruned", None, recipe.dense)
    assert before.stage_before == ("dense", recipe.dense_stage)
    assert recipe.dense_stage.stage_before is None
    last = recipe.last_stage("run/pruned")
    assert (last.stage_before, last.pruning, last.training) == (None, None, recipe.refine)
    assert (last.model.name, last.distillation.teacher) == ("run/pruned", "run/pruned/dense")


def test_filled(refined, tmp_path):
    recipe, out = refined({"fill": 0.01}), tmp_path / "run"
    results = run_recipe(recipe, out, progress=False)
    pruned = json.loads((out / "pruned" / "results.json").read_text())
    dense = json.loads((out / "pruned" / "dense" / "results.json").read_text())
    assert zeros(out / "pruned") > 0 == zeros(out)
    assert results["pruned"]["score"] == pruned["score"]
    assert (results["steps"], pruned["steps"], dense["steps"]) == (14, 12, 3)
    assert results["dense"] == pruned["dense"] | {"share": results["score"] / dense["score"]}
    assert results["teacher_score"] == pruned["teacher_score"] == dense["score"]
    assert results["shrunk"] == pruned["shrunk"]
    assert results["parameters"] == pruned["shrunk"]["parameters"][1]
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    kept = sum(module.weight.numel() for module in find_targets(model).values())
    assert (results["kept"], results["total"]) == (kept, pruned["total"])
    assert pruned["density"] == 0.5  # with live blocks of heads that nothing reads, which are gone now
    assert results["density"] == kept / pruned["total"] < 1
    assert Recipe.load(out / "recipe.yaml") == recipe
    assert results["recipe"] == recipe.to_dict()


def test_held(refined, tmp_path):
    run_recipe(refined({"hold_zeros": True}), tmp_path / "run", progress=False)
    assert zeros(tmp_path / "run") == zeros(tmp_path / "run" / "pruned") > 0


@pytest.mark.parametrize("where", ["step:11", "step:13"])
def test_a_kill_costs_nothing(refined, tmp_path, where):
    recipe = refined({"fill": 0.01})
    run_recipe(recipe, tmp_path / "whole", progress=False)
    killed(recipe, tmp_path / "killed", where)
    assert not (tmp_path / "killed" / "results.json").exists()
    run_recipe(recipe, tmp_path / "killed", resume=True, progress=False)
    whole, continued = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")
    )
    assert list(whole) == list(continued)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


# structures.md 12.15
def test_fill():
    model = tiny_bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for module in find_targets(model).values():
        module.weight.data[::2] = 0
    pruned = {name: value.clone() for name, value in model.state_dict().items()}
    assert fill_zeros(model, 0.01, seed=0) == sum(
        module.weight.numel() // 2 for module in find_targets(model).values()
    )
    for name, value in model.state_dict().items():
        assert value.shape == before[name].shape
        kept = pruned[name] != 0
        assert torch.equal(value[kept], pruned[name][kept])  # biases too
        if name.removesuffix(".weight") in find_targets(model):
            assert bool((value != 0).all())
            noise = value[~kept] - pruned[name].mean()
            assert noise.std() == pytest.approx(0.01 * float(pruned[name].std(correction=0)), rel=0.3)
        else:
            assert torch.equal(value, pruned[name])


@pytest.mark.parametrize(
    ("refine", "pruning", "message"),
    [
        ({"fill": 0.0}, {}, "refine.fill=0.0: must be greater than 0"),
        ({"fill": 0.01, "hold_zeros": True}, {}, "refine: fill and hold_zeros exclude each other"),
        ({"hold_zeros": 1}, {}, "refine.hold_zeros=1: must be true or false"),
        ({"steps": 0}, {}, "refine.steps=0: must be a whole number"),
        ({"stpes": 1}, {}, "refine: unknown setting 'stpes'"),
        ({"fill": 0.01}, {"structure": "element"}, "refine: structure='element' leaves the model its size"),
        (
            {"hold_zeros": True},
            {"structure": {"feed_forward": "neuron"}},
            r"refine.hold_zeros=True: structure=.* is removed whole",
        ),
    ],
)
def test_what_is_refused(refined, refine, pruning, message):
    with pytest.raises(FinepruneError, match=f"^{message}"):
        refined(refine, **pruning)


def test_zeros_inside_of_heads_may_be_held(refined):
    assert refined({"hold_zeros": True}, structure={"attention": "value_dim"}).refine.hold_zeros


def test_without_pruning(files):
    values = files.recipe().to_dict() | {"pruning": None, "refine": {"steps": 1}}
    with pytest.raises(FinepruneError, match="refine: there is no section pruning"):
        Recipe.from_dict(values)
