"""Without the engine's native library: torch's CSR matrices, or torch as it is."""

import copy

import numpy as np
import pytest
import torch

import fineprune
from fineprune import FinepruneError, FinepruneWarning
from fineprune.checkpoint.packing import PackedLinear
from fineprune.inference import fallback
from fineprune.inference.linear_module import SparseLinear
from fineprune.pruning.probe import difference, probe_inputs
from fineprune_runtime.layers import Linear, Matrix


def sparse(model):
    return [module for module in model.modules() if isinstance(module, SparseLinear)]


def test_a_product_by_hand():
    weight = Matrix.from_dense(np.array([[0, 2, 0], [0, 0, 0], [1, 0, -1]], np.float32))
    run = fallback.CsrEngine(Linear(weight, np.array([1, 2, 3], np.float32)))
    assert run(np.array([[1, 10, 100], [0, 1, 0]], np.float32)).tolist() == [[21, 2, -96], [3, 2, 3]]
    run = fallback.CsrEngine(Linear(weight, None))
    assert run(np.array([[1, 10, 100]], np.float32)).tolist() == [[20, 0, -99]]
    full = fallback.CsrEngine(Linear(Matrix.from_dense(np.array([[1, 2], [3, 4]], np.float32)), None))
    assert full(np.array([[1, 1]], np.float32)).tolist() == [[3, 7]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "t5"])
def test_each_layer_by_itself(name, packed, make, ask, no_engine, tmp_path):
    model = make(name)
    if packed:
        folder = fineprune.save_compact(model, tmp_path / "m").folder
        fast = fineprune.load(folder, packed=True)
    else:
        fast = copy.deepcopy(model)
    layers = len(fineprune.summary(model).layers)
    with pytest.warns(FinepruneWarning, match=f"no native library .* one by one, {layers} of them") as said:
        fineprune.accelerate(fast)
    assert len(said) == 1
    assert {layer.engine.level for layer in sparse(fast)} == {"torch-csr"}
    assert len(sparse(fast)) == layers
    inputs = probe_inputs(model)
    assert difference(ask(model, inputs), ask(fast, inputs)) < 1e-5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_layers_with_too_many_weights_stay_dense(name, packed, make, ask, no_engine, tmp_path):
    model = make(name, density=0.3)
    layers = len(fineprune.summary(model).layers)
    fast = copy.deepcopy(model)
    if packed:
        fast = fineprune.load(fineprune.save_compact(model, tmp_path / "m").folder, packed=True)
    with pytest.warns(FinepruneWarning, match=f"0 of them; {layers} stay dense: too many weights"):
        fineprune.accelerate(fast)
    assert not sparse(fast)
    assert not any(isinstance(module, PackedLinear) for module in fast.modules())
    inputs = probe_inputs(model)
    assert all(map(torch.equal, ask(model, inputs), ask(fast, inputs)))


def test_where_torch_cannot_either(make, ask, no_engine, monkeypatch):
    monkeypatch.setattr(fallback, "runs_here", lambda: False)
    model = make("bert")
    fast = copy.deepcopy(model)
    with pytest.warns(FinepruneWarning, match="no native library .* torch runs it dense"):
        fineprune.accelerate(fast)
    inputs = probe_inputs(model)
    assert all(map(torch.equal, ask(model, inputs), ask(fast, inputs)))


def test_it_runs_here():
    assert fallback.runs_here()


def test_float32_is_all_there_is(make, no_engine):
    with pytest.raises(FinepruneError, match="dtype='int8': the engine's native library is missing"):
        fineprune.accelerate(make("bert"), dtype="int8")


def test_no_gradient_either(make, texts, no_engine):
    model = make("bert")
    with pytest.warns(FinepruneWarning):
        fineprune.accelerate(model)
    with pytest.raises(FinepruneError, match="no gradient passes through"):
        model(**texts(2, 4)).logits.sum().backward()
