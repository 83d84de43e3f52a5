"""The JSON Schema of recipes: it is the one in the package, takes recipes, and refuses mistakes."""

import importlib.util
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fineprune.tasks.kinds import KINDS
from fineprune.training.run.builtin_recipes import FOLDER, SCHEMA
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.recipe_file import parse_yaml, read_yaml

VALID = """
model: minilm
task: {train: train.csv, validation: dev.csv}
training: {steps: 100}
"""


@pytest.fixture(scope="module")
def script() -> Any:
    path = Path(__file__).resolve().parents[1] / "docs" / "recipe_schema.py"
    spec = importlib.util.spec_from_file_location("recipe_schema", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def validator(script) -> Any:
    schema = script.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def changed(text: str) -> Any:
    """VALID with the sections of `text` in place of its own."""
    return parse_yaml(VALID, "here") | parse_yaml(text, "here")


def test_the_file_in_the_package_is_current(script):
    assert SCHEMA.read_text(encoding="utf-8") == script.text(), "run python docs/recipe_schema.py"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_the_package_validate(validator, path):
    validator.validate(read_yaml(path, "recipe"))


@pytest.mark.parametrize(
    "text",
    [
        "pruning: null",
        "pruning: {structure: [{attention: head, feed_forward: neuron, density: 0.5}, element]}",
        "distillation: {teacher: a, hidden: 1, layers: [[1, 2], [2, 4]], separate: true}",
        "model: {name: minilm, layers: [0, 2]}",
        "model: {name: minilm, layers: 3, structure: {attention: head}, density: 0.5}",
        "task: sst2",
        "task: {name: squad_v2, data_dir: data, n_best: 5}",
        "task: {train: a.csv, validation: b.csv, text: [premise, hypothesis], more: {hard: c.csv}}",
        "task: {kind: token_classification, train: a.conll, validation: b.conll, words: 0, tags: ner}",
        "training: {epochs: 2, warmup: 100, report_to: tensorboard, score_schedule: cosine}",
        "pruning: {targets: query, exclude: [key, value], mask_interval: null, penalty: 0}",
        "pruning: {structure: [4, 1]}",
        "pruning: {density: [0.5, 0.25, 0.1]}",
        "{pruning: {density: 0.1}, earlier_densities: [0.5]}",
        "pruning: {structure: {attention: {unit: head, density: 0.5}}}",
        "pruning: {method: platon, options: {beta1: 0.9, returns: kept}}",
        "pruning: {structure: [{attention: head, feed_forward: neuron}, element]}",
        "dense: tuned",
        "{dense: {}, distillation: {alpha: 2.7, task: 0.3, cache: true}}",
        "{pruning: {structure: {feed_forward: neuron}}, refine: {steps: 5, fill: 0.01}}",
        "methods: {dense: {pruning: null, model: {layers: 3}}, l0: {training: {epochs: 3}}}",
    ],
)
def test_what_a_recipe_may_say_validates(validator, text):
    values = changed(text)
    validator.validate(values)
    values.pop("methods", None)
    if "data_dir" not in text:  # there is none
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("trainings: {}", ""),
        ("model: null", "model"),
        ("model: {layers: 3}", "model"),
        ("model: {name: minilm, layers: 0}", "model"),
        ("model: {name: minilm, attention: flash}", "model"),
        ("task: sst3", "task"),
        ("task: {name: sst3}", "task"),
        ("task: {kind: classify, train: a}", "task"),
        ("task: {train: a, validation: b, n_best: 5}", "task"),
        ("task: {name: squad, labels: [a, b]}", "task"),
        ("task: {train: a, validation: b, metric: f2}", "task"),
        ("training: {stpes: 5}", "training"),
        ("training: {steps: 0}", "training.steps"),
        ("training: {steps: 1.5}", "training.steps"),
        ("training: {learning_rate: -1}", "training.learning_rate"),
        ("training: {warmup: 1.5}", "training.warmup"),
        ("training: {max_length: 3}", "training.max_length"),
        ("training: {keep_best: 1}", "training.keep_best"),
        ("training: {report_to: [wandbb]}", "training.report_to"),
        ("training: {schedule: constant}", "training.schedule"),
        ("pruning: {method: movment}", "pruning"),
        ("pruning: {density: 10}", "pruning"),
        ("pruning: {density: [0.5, 10]}", "pruning"),
        ("earlier_densities: [2]", "earlier_densities.0"),
        ("pruning: {structure: head}", "pruning"),
        ("pruning: {structure: {attention: neuron}}", "pruning"),
        ("pruning: {options: {beta: 1}}", "pruning"),
        ("distillation: {temperature: 0}", "distillation"),
        ("dense: {stpes: 5}", "dense"),
        ("refine: {fill: 0}", "refine"),
        ("methods: {movment: {}}", "methods"),
        ("methods: {movement: {prunings: {}}}", "methods"),
    ],
)
def test_mistakes_do_not_validate(validator, text, where):
    (error,) = validator.iter_errors(changed(text))
    assert ".".join(map(str, error.absolute_path)) == where


def test_sections_that_must_be_there(validator):
    messages = sorted(error.message for error in validator.iter_errors({}))
    assert messages == [f"{name!r} is a required property" for name in ("model", "task", "training")]


def test_settings_have_a_type_a_default_and_a_description(script):
    rows = {(row.section, row.field): row for row in script.settings()}
    assert rows["model", "name"][2:4] == ("text", "required")
    assert rows["training", "steps"][2:4] == ("whole number or null", "null")
    assert rows["training", "precision"][2:4] == ('"float32" or "bfloat16"', '"float32"')
    assert rows["task (classification)", "text"][2:4] == ("text or list of text", '"text"')
    assert rows["distillation", "alpha"].description == "Weight of the teacher's answers in the loss."
    assert rows["refine", "fill"].description.endswith(
        "null: they stay, and those that have a gradient grow."
    )
    assert ("refine", "steps") not in rows
    assert all(row.type and row.description for row in rows.values())
    assert {f"task ({kind.name})" for kind in KINDS} <= {section for section, _ in rows}
