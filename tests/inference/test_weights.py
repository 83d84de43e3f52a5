"""Linear layers of every form, as what the engine takes."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fineprune.checkpoint import packing
from fineprune.inference.weights import LinearPlace, dense_of, is_replaceable, linear_of, places, vector_of

WEIGHT = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [4.0, 0.0, 1.0, 0.0]])  # (out, in)
BIAS = torch.tensor([1.0, 2.0, 3.0])


def layer(kind, values=None):
    """An nn.Linear or a Conv1D that holds WEIGHT and BIAS, packed where `values` says how."""
    made = nn.Linear(4, 3) if kind == "linear" else Conv1D(3, 4)
    made.weight = nn.Parameter(WEIGHT.clone() if kind == "linear" else WEIGHT.T.contiguous())
    made.bias = nn.Parameter(BIAS.clone())
    if values is None:
        return made
    return packing.PackedLinear(made, packing.pack("x", made.weight, values).view(torch.int8))


@pytest.mark.parametrize("values", [None, "float32", "float16", "int8"])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_matrix_and_bias(kind, values):
    weight, bias = linear_of(layer(kind, values))
    assert weight.shape == (3, 4)
    assert weight.positions.tolist() == [1, 3, 8, 10]
    np.testing.assert_allclose(weight.values, [2, -1, 4, 1], rtol=0.01)
    assert weight.values.dtype == np.float32
    assert bias.tolist() == [1, 2, 3]
    assert (weight.scales is not None) == (kind == "linear" and values == "int8")
    np.testing.assert_allclose(weight.to_dense(), WEIGHT, rtol=0.01)


def test_no_bias_and_half_precision():
    half = nn.Linear(4, 3, bias=False).half()
    weight, bias = linear_of(half)
    assert bias is None
    assert weight.positions is None
    assert torch.equal(torch.from_numpy(weight.to_dense()), half.weight.float())


def test_a_vector_is_a_copy():
    tensor = torch.ones(3)
    vector = vector_of(tensor)
    tensor.zero_()
    assert vector.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_packed_layer_made_dense(kind):
    dense, x = dense_of(layer(kind, "float32")), torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    assert type(dense) is nn.Linear
    assert dense(x).tolist() == [[-979, 2, 107]]
    assert dense_of(layer(kind, "float32").half()).weight.dtype == torch.float16


def test_places():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": nn.Sequential(shared, shared)})
    found = places(model)
    assert [place.dotted for place in found[shared]] == ["a.0", "b.0", "b.1"]
    assert found[shared][1] == LinearPlace(model["b"], "0", "b.0")
    assert [place.dotted for place in found[model["a"]]] == ["a"]


def test_layers_whose_weight_is_read_by_another_module():
    block = nn.TransformerEncoderLayer(8, 2, 16)
    attention = nn.MultiheadAttention(8, 2)
    model = nn.ModuleDict({"block": block, "attention": attention, "free": nn.Linear(2, 2)})
    found = places(model)
    replaceable = [found[module][0].dotted for module in found if is_replaceable(module, found[module])]
    assert replaceable == ["free"]
