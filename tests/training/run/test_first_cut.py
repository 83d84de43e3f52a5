"""A model that is cut before it is trained."""

from dataclasses import replace

import pytest
from architectures.models import make
from support import tiny_bert
from transformers import AutoModelForSequenceClassification

from fineprune import FinepruneError, load
from fineprune.pruning.low_rank import is_low_rank
from fineprune.training.run.first_cut import cut
from fineprune.training.run.recipe import ModelConfig, Recipe
from fineprune.training.run.train import run_recipe

NEURONS = {"feed_forward": "neuron"}


def test_the_smallest_neurons_go():
    model = tiny_bert()
    for layer in model.bert.encoder.layer:
        layer.intermediate.dense.weight.data[3:7] *= 9
        layer.output.dense.weight.data[:, 3:7] *= 9
    done = cut(model, NEURONS, 4 / 32)
    assert [kept.units for kept in done.neurons] == [(3, 4, 5, 6)] * 2
    assert model.config.intermediate_size == 4
    assert done.ordinary


def test_heads_that_cannot_be_removed():
    with pytest.raises(FinepruneError, match=r"model.structure=\{'attention': 'head'\}: heads of mpnet"):
        cut(make("MPNet"), {"attention": "head"}, 0.5)


def test_a_run_in_two_stages(files, tmp_path):
    recipe = files.recipe(pruning={"method": "magnitude", "density": 0.5, "warmup": 1, "cooldown": 3})
    start = replace(recipe.model, structure=NEURONS, density=0.5)
    values = replace(recipe, model=start).to_dict() | {"dense": {"steps": 3, "learning_rate": 1e-3}}
    recipe = Recipe.from_dict(values)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    run_recipe(recipe, tmp_path / "run", progress=False)
    for folder in ("run/dense", "run"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder / "model")
        assert model.config.intermediate_size == 8  # of 16, once


def test_a_run_of_thin_layers_with_a_whole_teacher(files, tmp_path):
    run_recipe(files.recipe(pruning=None), tmp_path / "dense", progress=False)
    values = files.recipe(pruning=None).to_dict()
    values["model"] = {"name": str(tmp_path / "dense"), "low_rank": 1.5}
    values |= {"distillation": {"teacher": str(tmp_path / "dense"), "alpha": 0.5, "hidden": 1}}
    run_recipe(Recipe.from_dict(values), tmp_path / "thin", progress=False)
    again = {**values, "model": {"name": str(tmp_path / "thin")}}
    run_recipe(Recipe.from_dict(again), tmp_path / "again", progress=False)
    for folder in ("thin", "again"):
        model = load(tmp_path / folder / "model")
        assert is_low_rank(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.5}, "model: structure and density go together"),
        ({"structure": NEURONS}, "model: structure and density go together"),
        (
            {"structure": "element", "density": 0.5},
            "model.structure='element': leaves zeros in the model, or its size",
        ),
        (
            {"structure": {"attention": "value_dim"}, "density": 0.5},
            "model.structure={'attention': 'value_dim'}: leaves zeros in the model, or its size",
        ),
        ({"low_rank": 0.9}, "model.low_rank=0.9: expected a number of at least 1; 3 leaves a third"),
        ({"low_rank": "3"}, "model.low_rank='3': expected a number of at least 1"),
        ({"structure": NEURONS, "density": 2}, "model.density=2: the share of weights"),
        ({"structure": {"ffn": "neuron"}, "density": 0.5}, "model.structure: unknown setting 'ffn'"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(FinepruneError, match=f"^{message}"):
        ModelConfig("x", **settings)
