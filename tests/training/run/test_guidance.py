"""What is said before a run that cannot work, and after one that lost more than it had to."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fineprune.config import PruningConfig
from fineprune.pruning.preparing import prepare
from fineprune.tasks.text.task import ClassificationConfig
from fineprune.training.run.builtin_recipes import FOLDER, packaged
from fineprune.training.run.demo import STEPS, _recipe
from fineprune.training.run.guidance import (
    RunPlan,
    after,
    before,
    in_section,
    plan_of,
    quicker,
    untaught,
    usual_rates,
)
from fineprune.training.run.recipe import DistillationConfig, ModelConfig, Recipe, TrainingConfig
from fineprune.training.run.recipe_file import override, read_yaml

MINILM, BASE = (384, 0.0614), (768, 0.0635)
"""Size of the hidden states and root mean square of the matrices of MiniLM and all-mpnet-base-v2."""


def recipe_of(pruning="soft_movement", **training):
    """A recipe of 400 steps, as of MNLI in short-runs: rates rise over 20 steps, 120 at the final density."""
    settings = {"steps": 400, "learning_rate": 2e-4, "warmup": 20} | training
    return Recipe(
        model=ModelConfig("minilm"),
        task=ClassificationConfig(train="a.tsv", validation="b.tsv"),
        training=TrainingConfig(**settings),
        pruning=PruningConfig(method=pruning, warmup=0.02) if isinstance(pruning, str) else pruning,
    )


def model_of(width, size):
    """Two blocks of two matrices whose entries are `size` and -`size`, as a model with a config."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)])
    model.config = SimpleNamespace(hidden_size=width)
    for block in model.blocks:
        for linear in block:
            linear.weight.data = torch.full((4, 4), size) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    return model


def plan_for(recipe, like=MINILM, steps=None, new_head=False):
    return plan_of(recipe, model_of(*like), steps or recipe.training.steps, new_head)


# -- the plan ---------------------------------------------------------------------------------


def test_the_plan_of_ten_steps():
    pruning = PruningConfig(method="magnitude", density=0.1, warmup=2, cooldown=4)
    recipe = recipe_of(pruning, steps=10, learning_rate=0.08, warmup=2)
    # rates in units of 0.08: 0, 1/2, 1, 7/8, 6/8, 5/8, then 4/8, 3/8, 2/8, 1/8 at the final density
    assert plan_for(recipe, (384, 0.05)) == RunPlan(
        steps=10,
        warmup=2,
        prune_from=2,
        density=0.1,
        at_final=4,
        width=384,
        new_head=False,
        travel=pytest.approx(8.0),  # 0.08 * 5 / 0.05
        final_travel=pytest.approx(2.0),  # 0.08 * 10/8 / 0.05
    )
    assert plan_for(recipe, (None, 0.05)).width is None
    hold = replace(recipe, training=replace(recipe.training, schedule="hold"))
    assert plan_for(hold, (384, 0.05)).final_travel == pytest.approx(0.08 * 2.5 / 0.05)  # 1 + 3/4 + 2/4 + 1/4


def test_the_plan_of_runs_that_prune_nothing_or_to_an_unknown_density():
    dense = plan_for(recipe_of(None, warmup=0.1))
    assert (dense.warmup, dense.prune_from, dense.density, dense.at_final) == (40, None, None, 120)
    zeros = plan_for(recipe_of("keep_zeros"))
    assert (zeros.prune_from, zeros.density, zeros.at_final) == (None, None, 400)
    fixed = PruningConfig(method="soft_movement", penalty=400.0)
    assert plan_for(recipe_of(fixed)).density is None
    assert plan_for(recipe_of(fixed)).prune_from == 40
    halves = {
        "attention": {"unit": "head", "density": 0.5},
        "feed_forward": {"unit": "neuron", "density": 0.2},
    }
    assert plan_for(recipe_of(PruningConfig(structure=halves))).density is None


def test_the_size_of_weights_leaves_out_zeros_and_does_not_change_by_prepare():
    recipe = recipe_of(PruningConfig(method="l0", density=0.1), learning_rate=0.1)
    model = model_of(384, 0.5)
    expected = plan_of(recipe, model, 400, False).travel
    model.blocks[0][0].weight.data.zero_()
    assert plan_of(recipe, model, 400, False).travel == pytest.approx(expected)
    prepare(model, recipe.pruning, 400)
    assert plan_of(recipe, model, 400, False).travel == pytest.approx(expected)


# -- before a run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("like", "rate", "steps", "warmup", "cooldown", "ratio", "warned"),
    [  # the runs of _LEAST_TRAVEL
        (MINILM, 2e-4, 400, 0.1, 0.3, 0.07, True),
        ((384, 0.0638), 2e-4, 600, 0.1, 0.3, 0.09, True),
        (MINILM, 2e-4, 600, 0.1, 0.3, 0.10, True),
        (MINILM, 2e-4, 1500, 0.1, 0.3, 0.25, False),
        (MINILM, 1e-3, 400, 0.05, 0.5, 0.86, False),
        (BASE, 1e-4, 600, 0.05, 0.5, 0.12, False),
        (BASE, 3e-4, 600, 0.05, 0.5, 0.37, False),
    ],
)
def test_what_was_measured(like, rate, steps, warmup, cooldown, ratio, warned):
    pruning = PruningConfig(method="soft_movement", density=0.1, warmup=0.02, cooldown=cooldown)
    recipe = recipe_of(pruning, steps=steps, learning_rate=rate, warmup=warmup)
    plan = plan_for(recipe, like)
    assert plan.final_travel == pytest.approx(ratio, abs=0.006)
    assert len(before(recipe, plan)) == warned
    looser = replace(recipe, pruning=replace(pruning, density=0.25))
    assert before(looser, plan_for(looser, like)) == []


def test_weights_that_can_hardly_move():
    (line,) = before(recipe_of(), plan_for(recipe_of()))
    assert line == (
        "training.learning_rate=2e-4 over 120 steps at the final density (pruning.cooldown=0.3): the "
        "remaining weights can move by about 6% of their size, too little to make up for those that are "
        "pruned; give more training.steps or a larger pruning.cooldown or a rate of up to 1e-3"
    )
    high = recipe_of(learning_rate=1e-4)  # MPNet: no higher rate is known to help
    (line,) = before(high, plan_for(high, BASE))
    assert line.endswith("; give more training.steps or a larger pruning.cooldown")
    half = recipe_of(PruningConfig(cooldown=0.5), steps=100, learning_rate=1e-4)
    (line,) = before(half, plan_for(half, BASE))
    assert line.endswith("; give more training.steps")


@pytest.mark.parametrize(
    ("like", "rate", "parts"),
    [
        (MINILM, 3e-5, ("=3e-5: ", "size 384 take about 1e-4 to 1e-3", "400 steps of it hardly", "a higher")),
        (MINILM, 5e-3, ("=5e-3: ", "size 384 take about 1e-4 to 1e-3", "may diverge", "a lower")),
        (BASE, 1e-3, ("=1e-3: ", "size 768 take about 3e-5 to 1e-4", "may diverge", "a lower")),
        (BASE, 5e-6, ("=5e-6: ", "size 768 take about 3e-5 to 1e-4", "hardly move", "a higher")),
    ],
)
def test_rates_that_are_ten_times_off(like, rate, parts):
    recipe = recipe_of(None, learning_rate=rate)
    (line,) = before(recipe, plan_for(recipe, like))
    assert line.startswith("training.learning_rate")
    assert all(part in line for part in parts)


@pytest.mark.parametrize(
    ("like", "rate", "steps"),
    [
        (MINILM, 1e-4, 400),
        (MINILM, 1e-3, 400),
        (MINILM, 3e-5, 20_000),  # Σ lr is 0.29, several times the size of the weights
        (BASE, 3e-5, 400),
        (BASE, 3e-4, 400),
        ((None, 0.05), 3e-6, 400),
        ((8, 0.05), 1e-2, 400),
    ],
)
def test_rates_that_are_not_known_to_be_wrong(like, rate, steps):
    recipe = recipe_of(None, learning_rate=rate, steps=steps)
    assert before(recipe, plan_for(recipe, like)) == []


def test_usual_rates_run_through_the_two_models():
    assert usual_rates(384) == pytest.approx((1e-4, 1e-3))
    assert usual_rates(768) == pytest.approx((3e-5, 1e-4))
    assert usual_rates(None) is usual_rates(128) is usual_rates(4096) is None


def test_a_random_head():
    pruning = PruningConfig(method="movement", density=0.25, warmup=0.1)
    recipe = recipe_of(pruning)
    (line,) = before(recipe, plan_for(recipe, new_head=True))
    assert line.startswith("pruning.warmup=0.1: the model's head is new, and still random when ")
    assert "pruning begins at step 40; fine-tune densely first: a section dense (dense={}), or model" in line
    assert before(recipe, plan_for(recipe)) == []
    late = recipe_of(replace(pruning, warmup=400), steps=1000)
    assert before(late, plan_for(late, new_head=True)) == []
    for other in (None, "keep_zeros"):
        assert before(recipe_of(other), plan_for(recipe_of(other), new_head=True)) == []


def test_a_warmup_of_most_of_the_run():
    recipe = recipe_of(None, warmup=0.9)
    (line,) = before(recipe, plan_for(recipe))
    assert line.startswith("training.warmup=0.9: the learning rates rise over 360 of the 400 steps")
    assert before(recipe_of(None, warmup=200), plan_for(recipe_of(None, warmup=200))) == []


# -- the recipes of the package ---------------------------------------------------------------

ROWS = {"mnli": 392_702, "qqp": 363_846, "squad": 88_524}
"""Rows of training data; SQuAD's are windows."""

METHODS = ("magnitude", "l0", "movement", "soft_movement")


def packaged_recipe(name, *overrides):
    values = read_yaml(FOLDER / f"{name}.yaml", "recipe")
    values["task"] = {"train": "a.tsv", "validation": "b.tsv"}  # none of the data is needed
    return Recipe.from_dict(override(values, list(overrides)))


@pytest.mark.parametrize("choice", [f"pruning.method={name}" for name in METHODS] + ["pruning=null"])
@pytest.mark.parametrize("name", [name for name in packaged() if name.startswith("paper-")])
def test_the_papers_recipes_are_silent(name, choice):
    recipe = packaged_recipe(name, choice)
    steps = round(recipe.training.epochs * ROWS[name.split("-")[1]] / recipe.training.batch_size)
    for like in (MINILM, BASE):
        assert before(recipe, plan_for(recipe, like, steps, new_head=True)) == []


@pytest.mark.parametrize("name", [name for name in packaged() if name.startswith("small-")])
def test_small_recipes_prune_a_model_whose_head_is_random(name):
    for method in METHODS:
        recipe = packaged_recipe(name, f"pruning.method={method}")
        lines = before(recipe, plan_for(recipe, new_head=True))
        assert "fine-tune densely first" in lines[0]
        # 600 steps: MRPC ends within 3 points of the larger class
        assert ["can move by about 10% of" in line for line in lines[1:]] == [True] * (name == "small-mrpc")
    dense = packaged_recipe(name, "pruning=null")
    assert before(dense, plan_for(dense, new_head=True)) == []


@pytest.mark.parametrize("name", [name for name in packaged() if name.startswith("short")])
def test_short_recipes_are_silent_in_both_stages(name):
    recipe = packaged_recipe(name, "pruning.density=0.03").with_chosen(1000, MINILM[0])
    dense, pruned = recipe.dense_stage, recipe.after_dense("dense")
    assert before(dense, plan_for(dense, new_head=True)) == []
    assert before(pruned, plan_for(pruned)) == []


def test_the_demo_is_silent(tmp_path):
    for name in ("dense", "pruned"):
        recipe = _recipe(tmp_path, name, STEPS)
        assert before(recipe, plan_for(recipe, new_head=name == "dense")) == []


# -- after a run ------------------------------------------------------------------------------


def results_of(recipe, plan=None, **values):
    known = {"metric": "accuracy", "score": 0.6, "density": 0.1, "steps": recipe.training.steps}
    known |= {"constant": False, "teacher_score": None, "recipe": recipe.to_dict()}
    return known | ({} if plan is None else {"plan": plan._asdict()}) | values


TAUGHT = DistillationConfig("dense")


def test_the_share_that_was_kept():
    taught = replace(recipe_of(steps=2000), distillation=TAUGHT)
    assert after(results_of(taught, score=0.63, dense={"score": 0.64}, teacher_score=0.7)) == [
        "98.4% of the dense model's accuracy of 64.00%"
    ]
    assert after(results_of(taught, score=0.7, teacher_score=0.7)) == [
        "100.0% of its teacher's accuracy of 70.00%"
    ]
    assert after(results_of(taught, score=0.6, teacher_score=0.8)) == [
        "75.0% of its teacher's accuracy of 80.00%"
    ]
    assert after(results_of(taught, score=-0.1, dense={"score": 0.3, "share": -0.33}))[0] == (
        "no better than chance, against the dense model's accuracy of 30.00%"
    )


def test_settings_are_named_by_the_section_of_a_stage():
    warning = "training.learning_rate=2e-4: give more training.steps; training is short"
    assert (
        in_section("dense", warning) == "dense.learning_rate=2e-4: give more dense.steps; training is short"
    )
    assert in_section("training", warning) == warning


def test_a_stage_that_learned_nothing_is_named():
    assert untaught(None) is None
    assert untaught({"constant": False}) is None
    assert "learned nothing" in untaught({"constant": True})


@pytest.mark.parametrize(
    "values",
    [
        {},  # nothing to compare with
        {"constant": True, "teacher_score": 0.7},
        {"dense": {"score": 0.5, "share": None}},  # the dense model learned nothing
        {"score": 0.1, "teacher_score": 0.0},
        {"dense": {}},
    ],
)
def test_nothing_is_said_where_nothing_is_known(values):
    assert after(results_of(recipe_of(), **values)) == []


def test_nothing_is_said_of_a_dense_run():
    assert after(results_of(recipe_of(None), teacher_score=0.7)) == []


def advice(recipe, plan=None, **values):
    lines = after(results_of(recipe, plan, dense={"score": 0.8}, **values))
    return lines[1].removeprefix("what may help next: ").split("; ") if lines[1:] else []


def test_what_may_help_next():
    long = recipe_of(steps=2000)
    taught, short = replace(long, distillation=TAUGHT), replace(recipe_of(), distillation=TAUGHT)
    steps, density = "more training.steps (here 400)", "a higher pruning.density (here 3.0%)"
    assert advice(taught) == []
    assert advice(taught, density=0.03) == [density]
    assert advice(short, density=0.03) == [steps, density]
    assert advice(short, density=0.03, score=0.79) == []  # 98.75 %
    assert advice(recipe_of(), density=0.03) == ["a teacher (distillation={teacher: DENSE RUN})", steps]
    staged = replace(recipe_of(), dense=TrainingConfig(steps=400))
    assert advice(staged, density=0.03) == ["a teacher (distillation={})", steps]
    dense = "a dense stage (dense={})"
    higher = "a higher training.learning_rate (here 2e-4)"
    longer = "a larger pruning.cooldown (here 0.3)"
    assert advice(short, plan_for(short)) == [higher, longer]
    assert advice(short, plan_for(short, new_head=True)) == [dense, higher]
    assert advice(short, plan_for(short, (None, 0.0614))) == [longer, steps]
    half = replace(short, pruning=PruningConfig(cooldown=0.5))
    assert advice(half, plan_for(half, steps=20)) == [higher, steps]
    fixed = replace(taught, pruning=PruningConfig(method="soft_movement", penalty=400.0))
    assert advice(fixed, plan_for(fixed), density=0.03) == []
    later = results_of(short, dense={"score": 0.8}) | {"plan": plan_for(short)._asdict() | {"more": 1}}
    # The steps of several densities are those of the recipe, and a refinement's are not asked to be more.
    parts = results_of(short, dense={"score": 0.8}, steps=133)
    assert after(parts)[1] == f"what may help next: {steps}"
    assert len(after(results_of(taught, dense={"score": 0.8}, steps=20, pruned={"steps": 2000}))) == 1
    assert after(later)[1] == f"what may help next: {steps}"  # a plan of another version


@pytest.mark.parametrize(
    ("precision", "levels", "seconds", "told"),
    [
        ("float32", ("avx512_bf16", "avx512", "portable"), 90, True),
        ("float32", ("neon_i8mm", "neon_dot"), 90, True),
        ("float32", ("avx512_bf16",), 9, False),
        ("float32", ("avx512", "avx2"), 90, False),
        ("float32", (), 90, False),
        ("bfloat16", ("avx512_bf16",), 90, False),
    ],
)
@pytest.mark.parametrize("gpu", [False, True])
def test_a_processor_that_multiplies_bfloat16(precision, levels, seconds, told, gpu, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    said = quicker(precision, levels, seconds)
    assert len(said) == (told and not gpu)
    assert all("training.precision=bfloat16" in line for line in said)
