"""Runs whose structure makes the model smaller."""

import copy
import json
import logging
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from architectures.models import make
from support import call, tiny_bert
from transformers import AutoModelForSequenceClassification

from fineprune import PruningConfig, shrink
from fineprune.pruning.origin import origin_of
from fineprune.study.report.units import units_of
from fineprune.training.run import latency
from fineprune.training.run.builtin_recipes import FOLDER
from fineprune.training.run.evaluate import evaluate_run
from fineprune.training.run.inspection import inspect_folder
from fineprune.training.run.mask_snapshot import Record
from fineprune.training.run.shrinking import shrink_run
from fineprune.training.run.train import run_recipe

NEURONS = {"feed_forward": "neuron"}


def test_a_run_with_neurons(files, tmp_path):
    recipe = files.recipe(pruning={"method": "movement", "density": 0.5, "structure": NEURONS})
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert results["density"] == 0.75  # of all matrices; attention is whole
    assert results["left"] == {"parameters": 0.5, "flops": 0.5, "neurons": [16, 32]}
    shrunk = results["shrunk"]
    assert shrunk["neurons"] == [[8, 16]] * 2
    assert shrunk["ordinary"]
    assert shrunk["refused"] == []
    assert shrunk["difference"] < 1e-5
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.intermediate_size == 8
    assert sum(value.numel() for value in model.parameters()) == shrunk["parameters"][1]
    assert evaluate_run(tmp_path / "run")["accuracy"] == results["score"]
    score = Record.load(tmp_path / "run").score  # of the neuron that each sampled weight is of
    assert len(set(score.tolist())) == 2 * 16


def test_a_run_of_two_levels(files, tmp_path):
    structure = [{"attention": "head", **NEURONS, "density": 0.5}, "element"]
    pruning = {"method": "soft_movement", "density": 0.25, "structure": structure}
    results = run_recipe(files.recipe(pruning=pruning), tmp_path / "run", progress=False)
    assert results["recipe"]["pruning"]["structure"] == structure
    assert results["density"] == results["left"]["parameters"] == 0.25
    assert results["kept"] == results["total"] / 4
    (heads, of), (neurons, among) = results["left"]["heads"], results["left"]["neurons"]
    assert 0 < heads + neurons < of + among
    inspection = inspect_folder(tmp_path / "run")  # what elements empty goes, too
    assert sum(layer.heads_left for layer in inspection.layers) <= heads
    assert 0 < sum(layer.neurons_left for layer in inspection.layers) <= neurons
    assert inspection.shrunk
    assert inspection.density == 0.25
    assert evaluate_run(tmp_path / "run")["accuracy"] == results["score"]
    record = Record.load(tmp_path / "run")
    assert sum(matrix.kept for matrix in record.matrices) == results["kept"]


def test_two_steps(files, tmp_path):
    pruning = {"method": "soft_movement", "density": 0.5, "structure": NEURONS, "round_to": 4}
    first = run_recipe(files.recipe(pruning=pruning), tmp_path / "first", progress=False)
    before, after = first["shrunk"]["parameters"]
    assert after < before
    recipe = files.recipe(
        model=str(tmp_path / "first"),
        pruning={"method": "soft_movement", "density": 0.25, "structure": [4, 4]},
        distillation={"teacher": str(tmp_path / "first"), "alpha": 0.9, "hidden": 0.9},
    )
    second = run_recipe(recipe, tmp_path / "second", progress=False)
    assert second["total"] == first["total"] - (before - after) / 17 * 16  # a neuron's weights and its bias
    assert second["density"] == 0.25
    assert evaluate_run(tmp_path / "second")["accuracy"] == second["score"]


# The recipe as it is packaged, on a tiny model: 2 layers of 2 heads.
def test_a_run_of_dims_of_heads(files, tmp_path):
    run_recipe(files.recipe(pruning=None), tmp_path / "dense", progress=False)
    packaged = yaml.safe_load((FOLDER / "grain.yaml").read_text(encoding="utf-8"))
    pruning = packaged["pruning"] | {"density": 0.2, "options": {"decay": 0.5, "alpha": 2}}
    taught = packaged["distillation"] | {"teacher": str(tmp_path / "dense")}
    recipe = files.recipe(pruning=pruning, distillation=taught)
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    left = results["left"]
    assert left["parameters"] == results["density"] == pytest.approx(0.2, abs=0.01)
    assert set(left) == {"parameters", "flops", "query_dims", "value_dims", "neurons", "heads"}
    assert results["shrunk"]["refused"] == []
    assert sum(kept for kept, _ in results["shrunk"]["heads"]) == left["heads"][0] < left["heads"][1]
    inspection = inspect_folder(tmp_path / "run")
    assert sum(layer.heads_left for layer in inspection.layers) == left["heads"][0]
    assert sum(layer.heads for layer in inspection.layers) == left["heads"][1] == 4
    assert units_of(results).layers[0].heads_text == f"{inspection.layers[0].heads_left} of 2"
    assert evaluate_run(tmp_path / "run")["accuracy"] == results["score"]


def test_a_run_in_bfloat16_is_proved_in_float32(files, tmp_path, monkeypatch):
    seen = []

    def spy(model, pruning):
        seen.append(hasattr(vars(model).get("forward"), "__wrapped__"))  # by accelerate's autocast
        return shrink_run(model, pruning)

    monkeypatch.setattr(latency, "shrink_run", spy)
    recipe = files.recipe(pruning={"method": "magnitude", "density": 0.5, "structure": NEURONS})
    recipe = replace(recipe, training=replace(recipe.training, precision="bfloat16"))
    assert run_recipe(recipe, tmp_path / "run", progress=False)["shrunk"]["neurons"] == [[8, 16]] * 2
    assert seen == [False]


def test_what_inspect_says(tmp_path, capsys):
    model = tiny_bert(num_attention_heads=4)
    with torch.no_grad():
        for layer, heads in zip(model.bert.encoder.layer, (1, 3), strict=True):
            layer.attention.output.dense.weight[:, : 4 * heads] = 0
            layer.output.dense.weight[:, :heads] = 0
    shrunk = shrink(model)
    model.save_pretrained(tmp_path)
    inspection = inspect_folder(tmp_path)
    found = inspection.layers
    assert [layer.living_heads for layer in found] == [(1, 2, 3), (3,)]
    assert (inspection.flops.original, inspection.flops.stored) == shrunk.flops
    # Of each layer 4 matrices of 16 x 16 and 2 of 16 x 32; of a head 4 x 64 weights, of a neuron 32.
    assert [(layer.kept, layer.total) for layer in found] == [
        (2048 - 256 - 32, 2048),
        (2048 - 3 * 256 - 3 * 32, 2048),
    ]
    assert inspection.density == (2 * 2048 - 4 * 256 - 4 * 32) / 4096
    assert [(layer.heads_left, layer.heads) for layer in found] == [(3, 4), (1, 4)]
    assert [(layer.neurons_left, layer.neurons) for layer in found] == [(31, 32), (29, 32)]
    assert call("inspect", tmp_path) == 0
    said = "of the stored weights 100.00% are not zero: smaller matrices are less work in every runtime"
    assert said in capsys.readouterr().out


def test_a_run_with_layers_of_other_widths(files, tmp_path):
    structure = {"attention": "head", "feed_forward": "neuron"}
    pruning = {"method": "magnitude", "density": 0.5, "structure": structure, "scope": "global"}
    results = run_recipe(files.recipe(pruning=pruning), tmp_path / "run", progress=False)
    shrunk = results["shrunk"]
    assert not shrunk["ordinary"]
    folder = tmp_path / "run" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert sum(value.numel() for value in model.parameters()) == shrunk["parameters"][1]
    assert [[len(kept.units), kept.of] for kept in origin_of(model).neurons] == shrunk["neurons"]
    assert evaluate_run(tmp_path / "run")["accuracy"] == results["score"]
    assert results["warnings"] == [] or not any("weights.npz" in line for line in results["warnings"])
    for layer, found in zip(shrunk["layers"], inspect_folder(tmp_path / "run").layers, strict=True):
        assert layer.items() <= (asdict(found) | {"living_heads": list(found.living_heads)}).items()
    assert inspect_folder(tmp_path / "run").density == results["density"]


def test_a_model_that_cannot_be_shrunk_keeps_its_zeros(caplog):
    model = make("SqueezeBERT")  # no head or neuron of it is known
    before = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.WARNING, "fineprune"):
        assert shrink_run(model, PruningConfig(structure=NEURONS)) is None
    assert "the model was not made smaller: SqueezeBertForSequenceClassification" in caplog.text
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
