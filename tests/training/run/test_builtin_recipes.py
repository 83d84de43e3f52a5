"""The recipes of the package: each loads, and the paper's have the numbers of the authors' runs."""

import json
from pathlib import Path

import pytest
import yaml

from fineprune import FinepruneError
from fineprune.training.run.builtin_recipes import FOLDER, locate, packaged
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

METHODS = ("magnitude", "l0", "movement", "soft_movement")
COLUMNS = {
    "sst2": ("sentence", "label"),
    "mnli": ("premise", "hypothesis", "label"),
    "mrpc": ("Quality", "#1 String", "#2 String"),
}


@pytest.fixture
def folder(tmp_path):
    """`folder(name)`: the override that puts files in the place of a recipe's data, small or none."""

    def make(name: str) -> list[str]:
        size, _, task = name.partition("-")
        if size in ("paper", "two") or not task:  # data of the hub, or of the user
            return []
        for stem in ("train", "dev"):
            if task == "squad":
                (tmp_path / f"{stem}-v1.1.json").write_text("{}")
            else:
                (tmp_path / f"{stem}.tsv").write_text("\t".join(COLUMNS[task]) + "\n")
        return [f"task.data_dir={tmp_path}"]

    return make


def test_what_there_is():
    names = [f"paper-{task}" for task in ("mnli", "qqp", "squad")]
    tasks = ("mnli", "mrpc", "squad", "sst2")
    names += ["embeddings", "short", *(f"{size}-{task}" for size in ("short", "small") for task in tasks)]
    names += ["two-steps-first", "two-steps-second", "grain"]
    assert set(packaged()) == set(names)
    for about in packaged().values():
        assert 40 < len(about) < 120


@pytest.mark.parametrize("name", packaged())
def test_every_recipe_loads_with_every_method(name, folder):
    data = folder(name)
    dense = Recipe.load(name, [*data, "pruning=null"])
    assert dense.pruning is None
    for method in METHODS:
        recipe = Recipe.load(name, [*data, f"pruning.method={method}", "pruning.density=0.03"])
        assert recipe.pruning is not None
        assert (recipe.pruning.method, recipe.pruning.density) == (method, 0.03)
        assert recipe.pruning.controlled
        assert recipe.task == dense.task
        assert Recipe.from_dict(recipe.to_dict()) == recipe


# Of reference-runs.md: batch, max length, epochs, warm-up steps; t_i and t_f in units of these; learning
# rates of weights and scores.
PAPER = {
    ("squad", "magnitude"): (16, 384, 10, 5400, 5400, 10800, 3e-5, None),
    ("squad", "movement"): (16, 384, 10, 5400, 5400, 10800, 3e-5, 1e-2),
    ("squad", "soft_movement"): (16, 384, 10, 5400, 5400, 10800, 3e-5, 1e-2),
    ("squad", "l0"): (16, 384, 10, 5400, 5400, 5400, 3e-5, 1e-1),
    ("mnli", "magnitude"): (32, 128, 6, 12000, 12000, 12000, 3e-5, None),
    ("mnli", "movement"): (32, 128, 6, 12000, 12000, 12000, 3e-5, 1e-2),
    ("mnli", "soft_movement"): (32, 128, 6, 12000, 12000, 12000, 3e-5, 1e-2),
    ("mnli", "l0"): (32, 128, 6, 12000, 12000, 12000, 3e-5, 1e-1),
    ("qqp", "magnitude"): (32, 128, 10, 11000, 22000, 33000, 3e-5, None),
    ("qqp", "movement"): (32, 128, 10, 11000, 22000, 33000, 3e-6, 1e-2),
    ("qqp", "soft_movement"): (32, 128, 10, 11000, 22000, 33000, 3e-6, 1e-2),
    ("qqp", "l0"): (32, 128, 10, 11000, 11000, 11000, 3e-5, 1e-2),
}


@pytest.mark.parametrize(("task", "method"), PAPER)
def test_the_papers_settings(task, method):
    recipe = Recipe.load(f"paper-{task}", [f"pruning.method={method}"])
    training, pruning = recipe.training, recipe.pruning
    assert pruning is not None
    assert recipe.model.name == "google-bert/bert-base-uncased"
    assert recipe.model.layers is None
    found = (
        training.batch_size * training.accumulation,
        training.max_length,
        training.epochs,
        training.warmup,
        pruning.warmup,
        pruning.cooldown,
        training.learning_rate,
        pruning.score_lr,
    )
    assert found == PAPER[task, method]
    assert all(isinstance(steps, int) for steps in found[3:6])
    assert (training.weight_decay, training.max_grad_norm) == (0.0, 1.0)
    assert pruning.score_init == (None if method == "magnitude" else "zero")
    assert (pruning.density, pruning.freeze_embeddings, pruning.mask_interval) == (0.1, True, 1)
    assert recipe.task.to_dict()["hub"] == ("rajpurkar/squad" if task == "squad" else "nyu-mll/glue")


@pytest.mark.parametrize("task", ["squad", "mnli", "qqp"])
def test_the_papers_dense_runs(task):
    recipe = Recipe.load(f"paper-{task}", ["pruning=null"])
    assert (recipe.training.epochs, recipe.training.learning_rate) == (3, 3e-5)


def test_the_stride_and_the_second_validation_set():
    assert Recipe.load("paper-squad").task.to_dict()["stride"] == 128
    assert Recipe.load("paper-mnli").task.to_dict()["more"] == {"mismatched": "validation_mismatched"}


@pytest.mark.parametrize("name", ["short", "short-mnli", "short-mrpc", "short-squad", "short-sst2"])
def test_short_runs_go_from_a_dense_stage_that_teaches(name, folder):
    recipe = Recipe.load(name, folder(name))
    training, pruning, taught = recipe.training, recipe.pruning, recipe.distillation
    warmup = 0.05 if name == "short-mrpc" else 0.03  # of 230 steps a window of ten
    assert (pruning.method, pruning.warmup, pruning.cooldown) == ("pins", warmup, 0.5)
    assert (taught.teacher, taught.task, taught.alpha, taught.temperature) == (None, None, 0.9, 2.0)
    assert (training.dropout, training.warmup) == (0.0, 0.05)
    chosen = recipe.with_chosen(examples=9_888, width=384)
    assert (chosen.dense.learning_rate, chosen.training.learning_rate) == (2e-4, 1e-3)
    assert chosen.dense.steps == chosen.training.steps
    assert (chosen.dense.dropout, chosen.dense.max_length) == (None, training.max_length)


# -- `methods` and names ----------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path):
    """`write(methods)`: the path of a recipe with that section."""

    def make(methods) -> Path:
        values = {
            "model": "minilm",
            "task": {"train": "a", "validation": "b"},
            "training": {"steps": 100},
            "pruning": {"score_lr": 0.5},
            "methods": methods,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "recipe.yaml"

    return make


def test_a_methods_own_settings_hold_for_it_alone_and_overrides_win(write):
    path = write(
        {
            "movement": {"training": {"batch_size": 7}},
            "l0": {"pruning": {"score_lr": 0.1}},
            "dense": {"training": {"batch_size": 9}},
        }
    )
    assert Recipe.load(path).training.batch_size == 7
    l0 = Recipe.load(path, ["pruning.method=l0"])
    assert (l0.training.batch_size, l0.pruning.score_lr) == (32, 0.1)
    assert Recipe.load(path, ["pruning.method=l0", "pruning.score_lr=0.2"]).pruning.score_lr == 0.2
    assert Recipe.load(path, ["pruning=null"]).training.batch_size == 9
    assert Recipe.load(path, ["pruning.method=soft_movement"]).pruning.score_lr == 0.5


@pytest.mark.parametrize(
    ("methods", "overrides", "part"),
    [
        ({"movment": {}}, [], "methods: unknown setting 'movment'; did you mean movement"),
        (["l0"], [], "methods: expected a mapping"),
        ({"movement": 3}, [], "methods.movement: expected a mapping"),
        ({"movement": {"trainig": {}}}, [], "unknown setting 'trainig'"),
        ({"l0": {}}, ["pruning.method=[l0]"], "method=['l0']"),
        ({"l0": {}}, ["methods.l0.pruning=1"], "unknown setting 'methods'"),
    ],
)
def test_wrong_methods(write, methods, overrides, part):
    with pytest.raises(FinepruneError) as error:
        Recipe.load(write(methods), overrides)
    assert part in str(error.value)


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("paper-mnli") == locate(Path("paper-mnli")) == FOLDER / "paper-mnli.yaml"
    for path in ("paper-mnli.yaml", "runs/paper-mnli"):
        assert locate(path) == Path(path)
    with pytest.raises(FinepruneError, match="paper-mnl: no such file, and no recipe of that name; did you"):
        locate("paper-mnl")
    (tmp_path / "paper-mnli").write_text("mine")
    assert locate("paper-mnli") == Path("paper-mnli")


# -- runs -------------------------------------------------------------------------------------


def test_a_run_scores_further_sets_and_warms_up_in_steps(files, tmp_path):
    task = {"more": {"mismatched": str(files.train)}}
    results = run_recipe(files.recipe(task=task, training={"warmup": 6}), tmp_path / "run", progress=False)
    own = {"loss", "accuracy", "f1", "matthews"}
    assert set(results["scores"]) == own | {f"mismatched_{name}" for name in own}
    assert results["examples"] == {"train": 48, "validation": 20, "mismatched": 48}
    assert results["score"] == results["scores"]["accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    # 1e-2 after 6 of 12 steps; the rate that is logged at a step is the one that it took
    assert rates[7] == pytest.approx(1e-2)
    assert rates[4] == pytest.approx(5e-3)
    with pytest.raises(FinepruneError, match=r"training.warmup=12: the run has 12 steps; give fewer"):
        run_recipe(files.recipe(training={"warmup": 12}), tmp_path / "late", progress=False)
    assert not (tmp_path / "late").exists()
