"""Recipes: what YAML says, what overrides change, and the error for everything that is wrong."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fineprune import FinepruneError, PruningConfig
from fineprune.tasks.text.task import ClassificationConfig
from fineprune.training.host.learning_rates import Plan, Rates
from fineprune.training.run.recipe import ModelConfig, Recipe
from fineprune.training.run.training_config import TrainingConfig

TEXT = """\
# comments stay with the reader
model: minilm
task:
  train: train.tsv
  validation: dev.tsv
  text: [premise, hypothesis]
  label: gold
training:
  steps: 1000
  learning_rate: 2e-4
  group_by_length: true
pruning:
  method: movement
  density: 0.03
  cooldown: 200
"""
VALUES = yaml.safe_load(TEXT.replace("2e-4", "0.0002"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(TEXT)
    return tmp_path / "recipe.yaml"


def refused(call, *parts: str) -> None:
    with pytest.raises(FinepruneError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def changed(section: str, **values: Any) -> dict[str, Any]:
    """VALUES with settings of one section changed."""
    result = copy.deepcopy(VALUES)
    if isinstance(result[section], str):
        result[section] = {"name": result[section]}
    result[section] |= values
    return result


# -- loading ----------------------------------------------------------------------------------


def test_a_recipe_is_read(path):
    recipe = Recipe.load(path)
    assert recipe == Recipe(
        model=ModelConfig("minilm"),
        task=ClassificationConfig(
            train="train.tsv", validation="dev.tsv", text=("premise", "hypothesis"), label="gold"
        ),
        training=TrainingConfig(steps=1000, learning_rate=2e-4, group_by_length=True),
        pruning=PruningConfig("movement", density=0.03, cooldown=200),
    )


def test_defaults():
    recipe = Recipe.from_dict({key: VALUES[key] for key in ("model", "task")} | {"training": {"epochs": 3}})
    assert recipe.pruning is None
    assert recipe.training == TrainingConfig(
        steps=None,
        epochs=3,
        batch_size=32,
        accumulation=1,
        learning_rate=None,
        warmup=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=128,
        group_by_length=False,
        precision="float32",
        seed=0,
        evaluate_every=None,
        keep_best=False,
    )


def test_the_model_is_a_name_or_a_section():
    assert Recipe.from_dict(VALUES).model == ModelConfig("minilm", None)
    assert Recipe.from_dict(changed("model", layers=3)).model == ModelConfig("minilm", 3)
    refused(
        lambda: Recipe.from_dict(changed("model", attention="flash")),
        "model.attention='flash'",
        "eager, sdpa",
    )


def test_what_only_looks_like_a_number_stays_text(path):
    assert Recipe.load(path, ["task.label=e10"]).task.label == "e10"
    assert Recipe.load(path, ["model=model-2e"]).model.name == "model-2e"


def test_to_yaml_is_read_again(path, tmp_path):
    for recipe in (
        Recipe.load(path),
        Recipe.load(path, ["pruning=null"]),
        Recipe.load(path, ["training.steps=null", "training.epochs=2.5", "pruning.targets=[query, key]"]),
        Recipe.load(path, ["task.labels=['no', 'yes', '3', 'ü, \"x\": #']", "task.text=text"]),
    ):
        (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        assert Recipe.load(tmp_path / "again.yaml") == recipe
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@given(
    rate=st.floats(0, 1, allow_nan=False),
    density=st.floats(1e-9, 1),
    label=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1),
)
def test_every_value_survives_the_file(tmp_path_factory, rate, density, label):
    values = changed("training", learning_rate=rate)
    values["pruning"]["density"] = density
    values["task"]["label"] = label
    values["task"]["text"] = "the text"
    recipe = Recipe.from_dict(values)
    path = tmp_path_factory.getbasetemp() / "hypothesis.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.load(path) == recipe


@pytest.mark.parametrize("name", ["2e4", "1e-3", "3.e5"])
def test_a_name_that_looks_like_a_number_survives_the_file(tmp_path, name):
    recipe = Recipe.from_dict(changed("task", label=name))
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_recipes_of_the_repository_load():
    folder = Path(__file__).resolve().parents[3] / "recipes"
    for path in folder.glob("*.yaml"):
        recipe = Recipe.load(path)
        assert Recipe.from_dict(recipe.to_dict()) == recipe


# -- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("training.learning_rate=5e-5", lambda recipe: recipe.training.learning_rate, 5e-5),
        ("training.steps=7", lambda recipe: recipe.training.steps, 7),
        ("pruning.density=0.1", lambda recipe: recipe.pruning.density, 0.1),
        ("pruning.cooldown=0.5", lambda recipe: recipe.pruning.cooldown, 0.5),
        ("pruning.targets=[query, key]", lambda recipe: recipe.pruning.targets, ("query", "key")),
        ("pruning.method=magnitude", lambda recipe: recipe.pruning.method, "magnitude"),
        ("training.keep_best=true", lambda recipe: recipe.training.keep_best, True),
        ("training.evaluate_every=null", lambda recipe: recipe.training.evaluate_every, None),
        ("training.evaluate_every=", lambda recipe: recipe.training.evaluate_every, None),
        ("task.train=a=b.tsv", lambda recipe: recipe.task.train, "a=b.tsv"),
        ("model=other/model", lambda recipe: recipe.model, ModelConfig("other/model")),
        ("model.layers=3", lambda recipe: recipe.model, ModelConfig("minilm", 3)),
        ("pruning=null", lambda recipe: recipe.pruning, None),
        ("pruning={method: l0}", lambda recipe: recipe.pruning, PruningConfig("l0")),
    ],
)
def test_an_override(path, override, get, value):
    found = get(Recipe.load(path, [override]))
    assert (type(found), found) == (type(value), value)


def test_later_overrides_win_and_a_removed_section_can_be_begun_anew(path):
    recipe = Recipe.load(path, ["pruning.density=0.5", "pruning=null", "pruning.method=l0"])
    assert recipe.pruning == PruningConfig("l0")
    assert Recipe.load(path, ["training.steps=5", "training.steps=6"]).training.steps == 6


def test_steps_give_way_to_epochs(path):
    recipe = Recipe.load(path, ["training.steps=null", "training.epochs=3"])
    assert (recipe.training.steps, recipe.training.epochs) == (None, 3)
    refused(lambda: Recipe.load(path, ["training.epochs=3"]), "either steps or epochs")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("trainig.steps=5", ["unknown setting 'trainig'", "training"]),
        ("training.stpes=5", ["training: unknown setting 'stpes'", "steps"]),
        ("task=null", ["task"]),
        ("training=null", ["training"]),
        ("model=null", ["model"]),
    ],
)
def test_a_wrong_override(path, override, parts):
    refused(lambda: Recipe.load(path, [override]), *parts)


# -- what is wrong ----------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    refused(lambda: Recipe.load(tmp_path / "none.yaml"), "none.yaml", "cannot be read", "No such file")
    refused(lambda: Recipe.load(tmp_path), str(tmp_path), "is not a regular file")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "sections model, task"),
        (b"- model\n", "sections model, task"),
        (b"minilm", "sections model, task"),
        (b"model: [", "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, part):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    refused(lambda: Recipe.load(path), str(path), part)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({**VALUES, "trainnig": {}}, ["recipe: unknown setting 'trainnig'", "did you mean training"]),
        ({**VALUES, 3: {}}, ["recipe: unknown setting 3"]),
        ({**VALUES, "zzz": {}}, ["known: model, task, training, pruning"]),
        (changed("model", layer=3), ["model: unknown setting 'layer'", "layers"]),
        (changed("task", tarin="x"), ["task: unknown setting 'tarin'", "train"]),
        (changed("training", lerning_rate=1), ["training: unknown setting 'lerning_rate'", "learning_rate"]),
        (changed("pruning", dencity=0.1), ["pruning: unknown setting 'dencity'", "density"]),
    ],
)
def test_unknown_settings_name_the_nearest(values, parts):
    refused(lambda: Recipe.from_dict(values), *parts)


@pytest.mark.parametrize("section", ["model", "task", "training"])
def test_a_missing_section(section):
    values = {name: value for name, value in VALUES.items() if name != section}
    refused(lambda: Recipe.from_dict(values), f"the section {section!r} is missing")


@pytest.mark.parametrize("section", ["model", "task", "training", "pruning"])
@pytest.mark.parametrize("value", [3, ["a"], True])
def test_a_section_that_is_none(section, value):
    refused(lambda: Recipe.from_dict({**VALUES, section: value}), f"{section}: expected a mapping")


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({}, ["model: name is missing"]),
        ({"layers": 3}, ["model: name is missing"]),
        ("", ["model.name=''"]),
        ({"name": 3}, ["model.name=3"]),
        ({"name": None}, ["model.name=None"]),
        ({"name": "minilm", "layers": 0}, ["model.layers=0", "at least 1"]),
        ({"name": "minilm", "layers": 1.5}, ["model.layers=1.5", "whole number"]),
        ({"name": "minilm", "layers": True}, ["model.layers=True"]),
        ({"name": "minilm", "layers": "3"}, ["model.layers='3'"]),
    ],
)
def test_a_wrong_model(model, parts):
    refused(lambda: Recipe.from_dict({**VALUES, "model": model}), *parts)


WHOLE = {"steps": 1, "batch_size": 1, "accumulation": 1, "max_length": 4, "seed": 0, "evaluate_every": 1}
REAL = ["learning_rate", "warmup", "weight_decay", "max_grad_norm"]


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
    least = WHOLE[name]
    assert getattr(Recipe.from_dict(changed("training", **{name: least})).training, name) == least
    for wrong in (least - 1, -5, 2.0, "8", True, [8], float("nan")):
        refused(
            lambda wrong=wrong: Recipe.from_dict(changed("training", **{name: wrong})),
            f"training.{name}={wrong!r}: must be a whole number, at least {least}",
        )


@pytest.mark.parametrize("name", ["batch_size", "accumulation", "max_length", "seed", *REAL[1:]])
def test_null_is_not_a_value_where_there_is_a_default(name):
    refused(lambda: Recipe.from_dict(changed("training", **{name: None})), f"training.{name}=None")


@pytest.mark.parametrize("name", REAL)
def test_real_numbers(name):
    for right in (0, 0.5):
        found = getattr(Recipe.from_dict(changed("training", **{name: right})).training, name)
        assert (type(found), found) == (type(right) if name == "warmup" else float, right)
    for wrong in ("2e-4", True, [1], float("nan"), float("inf")):
        refused(
            lambda wrong=wrong: Recipe.from_dict(changed("training", **{name: wrong})),
            f"training.{name}={wrong!r}: must be a finite number",
        )
    refused(
        lambda: Recipe.from_dict(changed("training", **{name: -0.1})),
        f"training.{name}=-0.1: must not be negative",
    )


@pytest.mark.parametrize(
    ("training", "part"),
    [
        ({"epochs": 3}, "either steps or epochs"),
        ({"steps": None, "epochs": 0}, "training.epochs=0: must be greater than 0"),
        ({"steps": None, "epochs": -1.5}, "training.epochs=-1.5"),
        ({"steps": None, "epochs": float("inf")}, "training.epochs=inf: must be a finite number"),
        ({"steps": None, "epochs": "3"}, "training.epochs='3'"),
        ({"warmup": 1.0}, "training.warmup=1.0: must be a share"),
        ({"warmup": -1}, "training.warmup=-1"),
        (
            {"precision": "float16"},
            "training.precision='float16': did you mean bfloat16? allowed are float32, bfloat16",
        ),
        ({"precision": None}, "training.precision=None"),
        ({"schedule": "hodl"}, "training.schedule='hodl': did you mean hold"),
        ({"score_schedule": 3}, "training.score_schedule=3"),
        ({"cycles": 3}, "training.cycles=3: only with training.schedule=cycles, not linear"),
        ({"final_lr": -0.1}, "training.final_lr=-0.1: must be a share of the learning rate, in [0, 1]"),
        ({"dropout": 1.0}, "training.dropout=1.0: must be a probability, in [0, 1)"),
        ({"dropout": "0"}, "training.dropout='0'"),
        ({"head_lr": -1e-3}, "training.head_lr=-0.001: must be a learning rate, at least 0"),
        ({"norm_lr": True}, "training.norm_lr=True"),
        ({"keep_best": "yes"}, "training.keep_best='yes': must be true or false"),
        ({"keep_best": 1}, "training.keep_best=1"),
        ({"group_by_length": None}, "training.group_by_length=None: must be true or false"),
        pytest.param(
            {"seed": 2**32},  # more than set_seed takes
            "training.seed=4294967296",
        ),
    ],
)
def test_wrong_training(training, part):
    refused(lambda: Recipe.from_dict(changed("training", **training)), part)


@pytest.mark.parametrize(
    ("section", "values", "part"),
    [
        ("pruning", {"density": 0}, "density=0"),
        ("pruning", {"density": 2}, "density=2"),
        ("pruning", {"method": "movment"}, "method='movment': did you mean movement?"),
        ("pruning", {"warmup": 0.5, "cooldown": 0.5}, "less than 1"),
        ("task", {"metric": "acuracy"}, "accuracy"),
        ("task", {"validation": None}, "validation"),
    ],
)
def test_errors_of_the_other_sections_come_through(section, values, part):
    refused(lambda: Recipe.from_dict(changed(section, **values)), part)


def test_the_rates_of_a_training():
    training = TrainingConfig(
        steps=9, schedule="cycles", cycles=3, final_lr=0.1, score_schedule="hold", head_lr=1e-3
    )
    assert training.rates == Rates(Plan("cycles", 3, 0.1), Plan("hold", 1, 0.1), 1e-3, None)
    assert TrainingConfig(steps=9).rates == Rates()
