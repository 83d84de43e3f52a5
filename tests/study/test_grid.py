"""A study file becomes runs with names; what cannot work is one line."""

import os
from pathlib import Path

import pytest
import yaml
from study.grids import OUT, names, study

from fineprune import FinepruneError
from fineprune.study.grid import FOLDER, Cell, Study, cell_of, from_here


def test_the_product_of_the_axes_teachers_first_students_last():
    axes = {
        "method": ["magnitude", "dense", "l0"],
        "density": [0.1, 0.03],
        "distillation": [False, True],
        "seed": [0, 1],
    }
    made = study({"a": "paper-mnli", "b": "paper-qqp"}, axes=axes)
    found = names(made)
    assert found[:4] == ["a-dense-s0", "b-dense-s0", "a-dense-s1", "b-dense-s1"]
    assert found[4:8] == ["a-magnitude-0.1-s0", "a-magnitude-0.03-s0", "a-l0-0.1-s0", "a-l0-0.03-s0"]
    assert found[8:10] == ["b-magnitude-0.1-s0", "b-magnitude-0.03-s0"]
    assert found[20:22] == ["a-magnitude-0.1-distilled-s0", "a-magnitude-0.03-distilled-s0"]
    assert len(found) == len(set(found)) == 4 + 16 + 16


def test_scopes_are_those_that_a_method_knows():
    axes = {"method": ["dense", "movement", "l0"], "scope": ["local", "global"]}
    assert names(study(axes=axes)) == [
        "a-dense-s0",
        "a-movement-0.1-s0",
        "a-movement-0.1-global-s0",
        "a-l0-0.1-s0",
    ]
    runs = study(axes=axes).runs(OUT)
    assert [run.recipe.pruning and run.recipe.pruning.scope for run in runs] == [None, None, "global", None]


def test_teachers_are_made_where_the_axes_do_not_list_them():
    made = study(axes={"distillation": True, "seed": [3]}, skip=[])
    teacher, student = made.runs(OUT)
    assert (teacher.name, teacher.teacher) == ("a-dense-s3", None)
    assert (student.name, student.teacher) == ("a-movement-0.1-distilled-s3", "a-dense-s3")
    assert student.recipe.distillation.teacher == os.path.join("runs", "mine", "a-dense-s3")
    assert student.recipe.distillation.alpha == 0.9
    assert teacher.recipe.distillation is None
    assert teacher.recipe.pruning is None
    assert teacher.recipe.training.epochs == 3  # of the recipe's section methods.dense


def test_a_teacher_of_the_recipe():
    made = study(
        {"a": ["paper-mnli", "distillation.teacher=big"]}, axes={"distillation": True}, teacher="recipe"
    )
    (run,) = made.runs(OUT)
    assert (run.teacher, run.recipe.distillation.teacher) == (None, "big")
    (plain,) = study({"a": ["paper-mnli", "distillation.teacher=big"]}, teacher="recipe").runs(OUT)
    assert plain.recipe.distillation is None


def test_overrides_of_all_runs_and_of_a_task():
    made = study(
        {"a": ["paper-mnli", "training.batch_size=4"], "b": "paper-qqp"},
        overrides=["training.batch_size=16", "training.precision=bfloat16"],
        axes={"density": 0.0333, "seed": 5},
    )
    one, two = made.runs(OUT)
    assert [run.recipe.training.batch_size for run in (one, two)] == [4, 16]
    assert one.recipe.training.precision == "bfloat16"
    assert (one.recipe.training.seed, one.recipe.pruning.density) == (5, 0.0333)
    assert one.name == "a-movement-0.0333-s5"


def test_skip():
    axes = {"method": ["dense", "magnitude", "l0"], "density": [0.1, 0.03]}
    skip = [{"method": "magnitude", "density": 0.03}, {"method": ["l0"], "density": [0.1, 0.03]}]
    assert names(study(axes=axes, skip=skip)) == ["a-dense-s0", "a-magnitude-0.1-s0"]
    local = study(
        axes={"method": ["movement", "l0"], "scope": ["local", "global"]}, skip=[{"scope": "local"}]
    )
    assert names(local) == ["a-movement-0.1-global-s0", "a-l0-0.1-s0"]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (
            {"axes": {"density": [0.1, 0.10000001]}},
            ["would have one folder", "density 0.1,", "density 0.10000001", "a-movement-0.1-s0"],
        ),
        (
            {"recipes": {"a": "paper-mnli", "A": "paper-mnli"}},
            ["one folder", "a-movement-0.1-s0", "A-movement"],
        ),
        ({"axis": 1}, ["study: unknown setting 'axis'; did you mean axes"]),
        ({"axes": {"densities": [1]}}, ["axes: unknown setting 'densities'; did you mean density"]),
        (
            {"axes": {"method": ["movment"]}},
            ["axes.method='movment': did you mean movement", "soft_movement"],
        ),
        ({"axes": {"density": [10]}}, ["axes.density=10", "(0, 1]"]),
        ({"axes": {"density": [True]}}, ["axes.density=True"]),
        ({"axes": {"density": []}}, ["axes.density: is empty"]),
        ({"axes": {"density": [0.1, 0.3, 0.10]}}, ["axes.density: 0.1 is there twice"]),
        ({"axes": {"seed": [0, 0]}}, ["axes.seed: 0 is there twice"]),
        ({"axes": {"seed": [-1]}}, ["axes.seed=-1"]),
        ({"axes": {"scope": "row"}}, ["axes.scope='row'", "local, global"]),
        ({"axes": {"distillation": ["yes"]}}, ["axes.distillation='yes'"]),
        ({"axes": []}, ["axes: expected a mapping"]),
        ({"name": "../up"}, ["'../up' becomes the name of a folder"]),
        ({"name": "a" * 101}, ["becomes the name of a folder; use up to 100 letters"]),
        ({"recipes": {"a/b": "paper-mnli"}}, ["'a/b' becomes the name of a folder"]),
        ({"recipes": ["paper-mnli"]}, ["give a recipe for each task"]),
        ({"recipes": {"a": []}}, ["recipes.a: give a recipe"]),
        ({"recipes": {"a": 3}}, ["recipes.a=3: expected texts"]),
        ({"overrides": ["training.seed=3"]}, ["'training.seed=3'", "axes.seed"]),
        ({"recipes": {"a": ["paper-mnli", "pruning.density=1"]}}, ["recipes.a", "axes.density"]),
        ({"overrides": ["distillation.teacher=x"]}, ["say teacher: recipe"]),
        ({"teacher": "big"}, ["teacher='big': allowed are dense, recipe"]),
        ({"skip": [{"seed": 7}]}, ["skip: no run is {'seed': 7}"]),
        ({"skip": [{"method": "movement"}]}, ["leaves no run"]),
        ({"skip": [{"steps": 7}]}, ["skip: unknown setting 'steps'"]),
        ({"skip": [{}]}, ["leave out every run"]),
        ({"skip": {"seed": 7}}, ["expected a list"]),
        (
            {"recipes": {"a": "paper-mnl"}},
            ["a-movement-0.1-s0: paper-mnl: no such file", "did you mean paper-mnli"],
        ),
        ({"overrides": ["trainig.steps=3"]}, ["a-movement-0.1-s0", "unknown setting 'trainig'"]),
        (
            {"overrides": ["pruning.penalty=3"], "axes": {"method": ["magnitude"]}},
            ["magnitude has no penalty"],
        ),
        ({"claims": "yes"}, ["claims='yes': must be true or false"]),
        (
            {"axes": {"distillation": True}, "teacher": "recipe"},
            ["distilled-s0: the recipe paper-mnli", "teacher"],
        ),
    ],
)
def test_what_cannot_work_is_one_line(values, parts):
    with pytest.raises(FinepruneError) as error:
        study(**values).runs(OUT)
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    axes = {"method": "dense"}
    path.write_text(yaml.safe_dump({"name": "x", "recipes": {"a": "paper-mnli"}, "axes": axes}))
    assert names(Study.load(path)) == ["a-dense-s0"]
    path.write_text("name: x")
    with pytest.raises(FinepruneError, match=r"mine\.yaml: study: recipes is missing"):
        Study.load(path)
    path.write_text("name: [")
    with pytest.raises(FinepruneError, match=r"mine\.yaml: not YAML"):
        Study.load(path)
    with pytest.raises(FinepruneError, match="the study cannot be read"):
        Study.load(tmp_path / "none.yaml")
    with pytest.raises(FinepruneError, match="no study of that name; did you mean paper-table"):
        Study.load("paper-table")


def test_a_scope_of_the_recipe_must_be_an_axis(recipe_file):
    recipe_file.write_text(recipe_file.read_text().replace("density: 0.25", "density: 0.25\n  scope: global"))
    with pytest.raises(FinepruneError, match=r"is not of that scope or teacher; write its scope as an axis"):
        study({"a": str(recipe_file)}).runs(OUT)
    (run,) = study({"a": str(recipe_file)}, axes={"scope": ["global"]}).runs(OUT)
    assert run.recipe.pruning.scope == "global"


def test_a_cell_is_what_name_and_recipe_say():
    for run in study(axes={"method": ["dense", "l0", "movement"], "distillation": [False, True]}).runs(OUT):
        assert cell_of(run.name, run.recipe.to_dict()) == run.cell
    recipe = run.recipe.to_dict()
    assert cell_of("sst-2-movement-0.1-distilled-s0", recipe) == Cell("sst-2", "movement", 0.1, None, True, 0)
    for other in ("a-movement-0.1-s0", "-movement-0.1-distilled-s0", "mine"):
        assert cell_of(other, recipe) is None


def test_paths_are_seen_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_here(Path("runs/x")) == from_here(tmp_path / "runs" / "x") == os.path.join("runs", "x")
    assert from_here(tmp_path.parent / "x") == str(tmp_path.parent / "x")


# -- variants ---------------------------------------------------------------------------------


def test_variants_are_runs_of_their_own_and_share_the_dense_ones():
    axes = {
        "method": ["dense", "movement"],
        "variant": {"usual": [], "slow": ["training.learning_rate=1e-6", "pruning.cooldown=0.5"]},
    }
    made = study(axes=axes)
    runs = {run.name: run.recipe for run in made.runs(OUT)}
    assert list(runs) == ["a-dense-s0", "a-movement-0.1-s0-usual", "a-movement-0.1-s0-slow"]
    usual, slow = runs["a-movement-0.1-s0-usual"], runs["a-movement-0.1-s0-slow"]
    assert (usual.training.learning_rate, slow.training.learning_rate) == (3e-5, 1e-6)
    assert slow.pruning.cooldown == 0.5
    assert names(study(axes=axes, skip=[{"variant": "usual"}])) == ["a-dense-s0", "a-movement-0.1-s0-slow"]


def test_the_cell_of_a_variant_is_read_from_its_folder():
    recipe = study().runs(OUT)[0].recipe.to_dict()
    cell = cell_of("my-a-movement-0.1-s0-slow", recipe)
    assert (cell.task, cell.variant, cell.seed) == ("my-a", "slow", 0)
    assert cell_of("a-movement-0.1-s01", recipe) is None


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ([], "axes.variant=\\[\\]: give overrides by name"),
        ({"a/b": []}, "axes.variant: 'a/b' becomes the name of a folder"),
        ({"a": 3}, "axes.variant.a=3: expected texts"),
        ({"a": ["pruning.density=0.5"]}, "axes.variant.a: .* list it in axes.density"),
        ({"a": ["model.layers=3"]}, "axes.variant.a: 'model.layers=3' changes the dense runs too"),
        ({"a": ["training.stpes=3"]}, "a-movement-0.1-s0-a: training: unknown setting 'stpes'"),
    ],
)
def test_wrong_variants(variant, told):
    with pytest.raises(FinepruneError, match=told):
        study(axes={"variant": variant}).runs(OUT)


# -- from the dense runs on -------------------------------------------------------------------


def two_stages(tmp_path):
    """A recipe of two stages, without data."""
    values = {
        "model": {"name": "minilm", "layers": 3},
        "task": {"train": "a", "validation": "b"},
        "dense": {"steps": 7},
        "training": {"steps": 9},
        "pruning": {"density": 0.1},
        "distillation": {"alpha": 0.5},
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(values))
    return {"a": str(tmp_path / "two.yaml")}


def test_the_runs_of_a_recipe_of_two_stages_share_the_first(tmp_path):
    axes = {"distillation": [False, True], "seed": [0, 1]}
    made = study(two_stages(tmp_path), axes=axes, start="dense")
    runs = {run.name: run for run in made.runs(OUT)}
    assert list(runs)[:2] == ["a-dense-s0", "a-dense-s1"]
    assert len(runs) == 6
    first = runs["a-dense-s1"]
    assert (first.teacher, first.recipe.training.steps, first.recipe.training.seed) == (None, 7, 1)
    assert (first.recipe.pruning, first.recipe.distillation, first.recipe.dense) == (None, None, None)
    plain, taught = runs["a-movement-0.1-s1"], runs["a-movement-0.1-distilled-s1"]
    for run in (plain, taught):
        assert (run.teacher, run.recipe.training.steps, run.recipe.dense) == ("a-dense-s1", 9, None)
        assert (run.recipe.model.name, run.recipe.model.layers) == (from_here(OUT / "a-dense-s1"), None)
    assert plain.recipe.distillation is None
    assert taught.recipe.distillation.teacher == from_here(OUT / "a-dense-s1")


def test_a_recipe_of_one_stage_can_start_from_its_dense_runs_too():
    runs = study(start="dense").runs(OUT)
    assert [(run.name, run.teacher) for run in runs] == [
        ("a-dense-s0", None),
        ("a-movement-0.1-s0", "a-dense-s0"),
    ]
    assert runs[1].recipe.model.name == from_here(OUT / "a-dense-s0")


def test_two_stages_need_to_be_said(tmp_path):
    with pytest.raises(
        FinepruneError, match=r"a-movement-0.1-s0: .*two.yaml has two stages; say start: dense"
    ):
        study(two_stages(tmp_path)).runs(OUT)
    with pytest.raises(FinepruneError, match="start='dens': did you mean dense"):
        study(start="dens")


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("frontier-small", 40, "sst2-6-dense-s0", "sst2-mpnet-6-soft_movement-0.03-distilled-s0-elements"),
        ("frontier-minilm", 20, "sst2-6-dense-s0", "sst2-3-soft_movement-0.03-distilled-s0-elements"),
        ("shapes", 24, "sst2-6-dense-s0", "sst2-3-soft_movement.heads-0.25-distilled-s2"),
        ("short-levers", 126, "sst2-dense-s0", "mrpc-pins-0.03-distilled-s2-norm-rate"),
        (
            "embeddings",
            36,
            "embeddings-pins-0.25-distilled-s0-all",
            "embeddings-pins.levels-0.5-distilled-s2-all",
        ),
        ("methods", 192, "sst2-dense-s0", "squad-admm-0.03-distilled-s2"),
        ("structures", 162, "sst2-dense-s0", "mnli-soft_movement.heads-0.1-distilled-s2-refined"),
        ("short-runs", 132, "sst2-dense-s0", "squad-l0-0.03-distilled-s2"),
        ("paper-table2", 27, "squad-dense-s0", "qqp-soft_movement-0.03-s0"),
        ("paper-table3", 27, "squad-dense-s0", "qqp-soft_movement-0.03-distilled-s0"),
        ("small-table2", 45, "sst2-dense-s0", "sst2-soft_movement-0.03-s1"),
        ("small-table3", 45, "sst2-dense-s0", "sst2-soft_movement-0.03-distilled-s1"),
        ("small-curves", 25, "sst2-dense-s0", "sst2-soft_movement-0.03-s0"),
        ("small-longer", 5, "mnli-dense-s0", "mnli-soft_movement-0.03-s0"),
    ],
)
def test_the_studies_of_the_package(name, count, first, last):
    made = Study.load(name)
    found = names(made)
    assert (len(found), found[0], found[-1]) == (count, first, last)
    assert made.claims == name.startswith(("paper", "small"))
    if made.name == "paper":
        runs = made.runs(OUT)
        assert {run.recipe.model.name for run in runs} == {"google-bert/bert-base-uncased"}
        assert sum(run.teacher is not None for run in runs) == (24 if name == "paper-table3" else 0)


@pytest.mark.realdata
def test_the_small_studies_find_their_data(realdata):
    for name in ("small-table2", "small-table3", "small-curves", "small-longer"):
        values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        for task, texts in values["recipes"].items():
            values["recipes"][task] = [*texts, f"task.data_dir={realdata / task}"]
        layers = {run.cell.task: run.recipe.model.layers for run in Study.from_dict(values).runs(OUT)}
        assert layers == {task: 3 if task == "sst2" else None for task in values["recipes"]}
