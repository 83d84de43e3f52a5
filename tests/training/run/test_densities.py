"""Several densities from one run: a chain of runs, each from the model of the density before."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from training.run.test_train_resumed import killed

from fineprune import FinepruneError
from fineprune.training.run.densities import family_lines
from fineprune.training.run.dry_run import dry_run
from fineprune.training.run.evaluate import evaluate_run
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.recipe_check import check_recipe, summary_lines
from fineprune.training.run.train import run_recipe


@pytest.fixture
def family(files):
    """`family(density, **sections)`: 6 dense steps, then 12 of all densities."""

    def make(density=(0.5, 0.25), training=(), **pruning):
        values = files.recipe().to_dict()
        values["pruning"] = {"method": "movement", "warmup": 1, "cooldown": 2} | pruning
        values["pruning"]["density"] = list(density)
        values["training"] |= dict(training)
        values["dense"] = {"steps": 6, "learning_rate": 3e-3, "evaluate_every": 3}
        return Recipe.from_dict(values | {"distillation": {"alpha": 0.9}})

    return make


def test_the_stages(family):
    recipe = family([0.5, 0.25, 0.1], {"steps": 20})
    assert (recipe.pruning.density, recipe.earlier_densities) == (0.1, (0.5, 0.25))
    name, before = recipe.stage_before
    assert (name, before.pruning.density, before.earlier_densities) == ("density-0.25", 0.25, (0.5,))
    first_name, first = before.stage_before
    assert (first_name, first.pruning, first.earlier_densities) == (
        "density-0.5",
        replace(recipe.pruning, density=0.5),
        (),
    )
    assert first.stage_before == ("dense", recipe.dense_stage)
    assert recipe.dense_stage.stage_before is None
    last, middle = recipe.last_stage("run/density-0.25"), before.last_stage("run/density-0.5")
    assert [stage.training.steps for stage in (first, middle, last)] == [6, 7, 7]
    assert last.pruning == replace(recipe.pruning, initial_density=0.25, warmup=0)
    assert (last.model.name, last.distillation.teacher) == ("run/density-0.25", "run/dense")
    assert (last.dense, last.earlier_densities) == (None, ())


def test_steps_of_epochs_and_of_neither(family):
    recipe = family([0.5, 0.25, 0.1], {"steps": None, "epochs": 6})
    assert recipe.last_stage("run").training.epochs == 2
    assert recipe.stage_before[1].training.epochs == 4
    unsaid = family([0.5, 0.25, 0.1], {"steps": None})
    assert unsaid.last_stage("run").training.steps is None
    chosen = unsaid.with_chosen(48, 8)  # 300 is the least of a run of one density
    assert (chosen.training.steps, chosen.last_stage("run").training.steps) == (900, 300)


def test_both_forms_are_one_recipe(family):
    recipe = family()
    values = recipe.to_dict()
    assert (values["pruning"]["density"], values["earlier_densities"]) == (0.25, [0.5])
    assert Recipe.from_dict(values) == recipe
    assert family([0.25]).earlier_densities == ()


def test_a_run_is_a_chain_of_runs(family, tmp_path):
    recipe, out = family(), tmp_path / "family"
    results = run_recipe(recipe, out, progress=False)
    first = json.loads((out / "density-0.5" / "results.json").read_text())
    dense = json.loads((out / "dense" / "results.json").read_text())
    assert results["densities"] == [
        {"density": 0.5, "score": first["score"], "folder": "density-0.5"},
        {"density": 0.25, "score": results["score"], "folder": "."},
    ]
    assert family_lines(results, Path("out"))[0] == (
        f"density 50.0%: accuracy {first['score']:.2%} in out/density-0.5"
    )
    assert family_lines(first, out) == []
    assert [run["steps"] for run in (dense, first, results)] == [6, 6, 6]
    assert (first["density"], results["density"]) == (0.5, 0.25)
    for run in (first, results):
        assert run["teacher_score"] == run["dense"]["score"] == dense["score"]
        assert run["dense"]["share"] == run["score"] / dense["score"]
    alone = run_recipe(recipe.stage_before[1].after_dense(str(out / "dense")), tmp_path / "first")
    second = run_recipe(recipe.last_stage(str(out / "density-0.5")), tmp_path / "second")
    assert (alone["score"], second["score"]) == (first["score"], results["score"])
    for one, other in (("first", out / "density-0.5"), ("second", out)):
        weights = [folder / "model" / "model.safetensors" for folder in (tmp_path / one, other)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert Recipe.load(out / "recipe.yaml") == recipe
    assert Recipe.load(out / "density-0.5" / "recipe.yaml") == recipe.stage_before[1]
    assert evaluate_run(out / "density-0.5")["accuracy"] == first["score"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [("pins", {"options": {"window": 2}, "mask_interval": 2}), ("fisher", {})],
)
def test_methods_that_read_gradients_go_on_from_a_pruned_model(family, tmp_path, method, settings):
    results = run_recipe(family(method=method, **settings), tmp_path / "family", progress=False)
    folders = [tmp_path / "family" / entry["folder"] for entry in results["densities"]]
    assert [json.loads((folder / "results.json").read_text())["density"] for folder in folders] == [0.5, 0.25]


def test_a_kill_in_either_density_costs_nothing(family, tmp_path):
    recipe = family(training={"steps": 13})  # 6 and 7 after 3 dense ones
    recipe = replace(recipe, dense=replace(recipe.dense, steps=3))
    run_recipe(recipe, tmp_path / "whole", progress=False)
    for where, done in (("step:5", ["dense"]), ("step:7", ["dense", "density-0.5"])):
        out = tmp_path / done[-1]
        killed(recipe, out, where)
        assert sorted(path.parent.name for path in out.rglob("results.json")) == done
        run_recipe(recipe, out, resume=True, progress=False)
        for part in ("density-0.5/model", "model"):
            whole, continued = (run / part / "model.safetensors" for run in (tmp_path / "whole", out))
            assert whole.read_bytes() == continued.read_bytes()


def content(path):
    """What a file of weights says, whose fields of metadata come in any order."""
    with safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def test_heads_and_neurons_are_counted_as_those_of_the_first_model(family, tmp_path):
    structure = {"attention": "head", "feed_forward": "neuron"}
    recipe = family([0.75, 0.5], method="magnitude", structure=structure)
    out = tmp_path / "out"
    results = run_recipe(recipe, out, progress=False)
    first = json.loads((out / "density-0.75" / "results.json").read_text())
    assert results["total"] == first["total"]
    assert results["parameters"] == first["parameters"]
    assert results["shrunk"]["parameters"][1] < first["shrunk"]["parameters"][1] < first["parameters"]
    assert not list(out.rglob("whole"))  # of the first density, with which the second began
    assert evaluate_run(out)["accuracy"] == results["score"]

    weights = out / "model" / "model.safetensors"
    before = content(weights)
    weights.unlink()
    (out / "results.json").unlink()
    with pytest.raises(FinepruneError, match=r"density-0.75: its model before .* its results.json, too"):
        run_recipe(recipe, out, resume=True, progress=False)
    (out / "density-0.75" / "results.json").unlink()
    run_recipe(recipe, out, resume=True, progress=False)
    assert content(weights) == before


def test_the_check_shows_each_density(family):
    lines = list(summary_lines(check_recipe(family())))
    assert lines[2:6] == [
        "dense     6 steps, batch 8, learning rate 0.003",
        "training  6 steps, batch 8, learning rate 0.01",
        "training  6 steps, batch 8, learning rate 0.01",
        "pruning   movement, density 50.0%, 25.0%, structure element",
    ]


def test_a_dry_run_rehearses_each_density(family):
    stages = dry_run(family([0.75, 0.5], structure={"attention": "head"}))["stages"]
    assert [(stage["stage"], stage["steps"]) for stage in stages] == [
        ("dense", 6),
        ("training", 6),
        ("training", 6),
    ]
    assert [stage["densities"][-1][1] for stage in stages[1:]] == [0.75, 0.5]
    assert stages[2]["densities"][0][1] < 0.75  # at step 1 of 6 it is on its way from 0.75


@pytest.mark.parametrize(
    ("density", "sections", "told"),
    [
        ([], {}, r"pruning.density=\[\]: is empty; list densities from high to low"),
        ([0.25, 0.5], {}, r"pruning.density=\[0.25, 0.5\]: 0.5 after 0.25; each density must be lower"),
        ([0.5, 0.5], {}, "0.5 after 0.5"),
        ([0.5, 0], {}, "0 is no density"),
        ([5, 0.5], {}, r"5 is no density, a share in \(0, 1\]; for 10 % write 0.1"),
        ([0.5, "a"], {}, "'a' is no density"),
        (
            [0.5, 0.1],
            {"method": "admm"},
            "pruning.method='admm': cannot go on from a model that is pruned",
        ),
        ([0.5, 0.1], {"method": "movement", "score_init": "zero"}, "its scores start at 0"),
        ([0.5, 0.1], {"method": "smp"}, "pruning.method='smp': its scores start at 0"),
        ([0.5, 0.1], {"method": "soft_movement", "penalty": 1.0}, "pruning.penalty=1.0: decides the density"),
        (
            [0.5, 0.1],
            {"method": "magnitude", "structure": {"attention": {"unit": "head", "density": 0.5}}},
            r"pruning.structure: attention has a density of its own \(0.5\)",
        ),
        (
            [0.5, 0.1],
            {"initial_density": 0.3},
            r"initial_density=0.3: must lie between density \(0.5\) and 1",
        ),
        ([0.5, 0.1], {"training": {"steps": 1}}, "training.steps=1: 0 for each of 2 densities, too few"),
        (
            [0.5, 0.1],
            {"cooldown": 6},
            "training.steps=12: 6 for each of 2 densities, too few for pruning.cool",
        ),
    ],
)
def test_refused(family, density, sections, told):
    with pytest.raises(FinepruneError, match=told) as error:
        family(density, **sections)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"earlier_densities": 0.5}, "earlier_densities=0.5: must be a list of densities"),
        ({"earlier_densities": [0.2]}, r"pruning.density=\[0.2, 0.25\]: 0.25 after 0.2"),
        ({"pruning": None}, "earlier_densities: there is no section pruning"),
        (
            {"pruning": {"density": [0.5, 0.1]}},
            r"lists all densities, so leave out earlier_densities=\[0.5\]",
        ),
        ({"refine": {"steps": 3}}, "refine: "),
    ],
)
def test_refused_beside_earlier_densities(family, changed, told):
    with pytest.raises(FinepruneError, match=told):
        Recipe.from_dict(family().to_dict() | changed)


def test_what_the_last_density_refuses_costs_no_training(family, tmp_path: Path):
    recipe = family(training={"steps": None, "epochs": 2}, cooldown=6)  # 12 steps, so 6 for each
    with pytest.raises(FinepruneError, match="the schedule needs at least"):
        run_recipe(recipe, tmp_path / "out", progress=False)
    assert not list(tmp_path.rglob("results.json"))
