"""Which units are empty, and what goes into the bias of the matrix that reads them: literal cases."""

import pytest
import torch
from torch import nn

from fineprune.pruning.anatomy import blocks_of
from fineprune.pruning.empty_units import activation_of, empty_heads, empty_neurons
from fineprune.pruning.layout import LiveMatrix


class Config:
    def __init__(self, **settings):
        self.__dict__.update(settings)


def model_of(**matrices):
    """A model whose one block has linear layers of these weights and biases (None: no bias)."""
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Module()])
    for name, (weight, bias) in matrices.items():
        weight = torch.tensor(weight)
        linear = nn.Linear(*reversed(weight.shape), bias=bias is not None)
        linear.weight = nn.Parameter(weight)
        if bias is not None:
            linear.bias = nn.Parameter(torch.tensor(bias))
        parent, _, last = name.rpartition("__")
        if parent and not hasattr(model.layers[0], parent):
            model.layers[0].add_module(parent, nn.Module())
        (model.layers[0].get_submodule(parent) if parent else model.layers[0]).add_module(last, linear)
    return model


def block_of(model, **config):
    matrices = [
        LiveMatrix(name, tuple(module.weight.shape), False)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    (block,) = blocks_of(matrices, config)
    return block


def neurons(model, activation="gelu"):
    (forward,) = block_of(model).feed_forwards
    alive, added = empty_neurons(model, forward, activation_of(Config(hidden_act=activation)))
    return alive.tolist(), None if added is None else added.tolist()


def heads(model, count):
    (attention,) = block_of(model, num_attention_heads=count).attentions
    alive, added = empty_heads(model, attention)
    return alive.tolist(), None if added is None else added.tolist()


def test_a_constant_neuron_goes_into_the_bias():
    model = model_of(fc1=([[0.0], [1.0]], [1.0, 0.0]), fc2=([[2.0, 1.0], [-1.0, 1.0]], [0.5, 0.0]))
    alive, added = neurons(model)
    assert alive == [False, True]
    # GELU(1) = 0.841345: [0.5, 0] + 0.841345 * [2, -1] = [2.182689, -0.841345]
    assert added == pytest.approx([2.182689 - 0.5, -0.841345], abs=1e-6)


def test_a_neuron_that_nothing_reads():
    model = model_of(fc1=([[3.0], [1.0]], [1.0, 1.0]), fc2=([[0.0, 1.0]], [0.5]))
    assert neurons(model) == ([False, True], None)


@pytest.mark.parametrize(
    ("bias", "activation", "alive"),
    [
        (1.0, "gelu", True),  # a constant of 0.84, and no bias to take it
        (0.0, "gelu", False),
        (-1.0, "relu", False),
        (0.0, "exp", True),  # is not known
        (0.0, None, True),
    ],
)
def test_a_constant_without_a_bias_to_take_it(bias, activation, alive):
    model = model_of(fc1=([[0.0], [1.0]], [bias, 0.0]), fc2=([[2.0, 1.0]], None))
    assert neurons(model, activation) == ([alive, True], None)


@pytest.mark.parametrize(
    ("gate", "up", "activation", "alive", "added"),
    [
        (([1.0], 1.0), ([0.0], 0.0), "silu", False, 0.0),
        (([1.0], 1.0), ([0.0], 0.0), "exp", False, 0.0),  # 0 whatever the activation
        (([0.0], -2.0), ([1.0], 1.0), "relu", False, 0.0),
        (([0.0], 2.0), ([1.0], 1.0), "relu", True, None),  # 2 * up
        (([1.0], 1.0), ([0.0], 1.0), "relu", True, None),  # act(gate)
        (([0.0], 2.0), ([0.0], 3.0), "relu", False, 2.0 * 3.0 * 5.0),
        (([0.0], 2.0), ([0.0], 3.0), "exp", True, None),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_gated(gate, up, activation, alive, added, fused):
    down = ([[5.0, 1.0]], [0.0])
    gate, up = ([gate[0], [1.0]], [gate[1], 0.0]), ([up[0], [1.0]], [up[1], 0.0])
    if fused:
        model = model_of(gate_up_proj=(gate[0] + up[0], gate[1] + up[1]), down_proj=down)
    else:
        model = model_of(up_proj=up, gate_proj=gate, down_proj=down)
    assert neurons(model, activation) == ([alive, True], None if added is None else [added])


def attention_of(query=((1.0, 1.0), (1.0, 1.0)), value=((0.0, 0.0), (0.0, 0.0)), bias=(3.0, 4.0)):
    """Two heads of 2, of which the first is given."""
    ones, zero = ((1.0, 1.0), (1.0, 1.0)), (0.0, 0.0)
    return model_of(
        attention__query=([*map(list, query + ones)], [0.0] * 4),
        attention__key=([*map(list, ones + ones)], [0.0] * 4),
        attention__value=([*map(list, value + ones)], [*bias, *zero]),
        attention__o_proj=([[1.0, 2.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]], [0.5, 0.5]),
    )


def test_a_head_without_values_gives_the_bias_of_them():
    # [0.5, 0.5] + [[1, 2], [0, 1]] [3, 4] = [11.5, 4.5]
    assert heads(attention_of(), 2) == ([False, True], [11.0, 4.0])


def test_a_head_without_a_query_is_alive():
    zero = ((0.0, 0.0), (0.0, 0.0))
    assert heads(attention_of(query=zero, value=((1.0, 0.0), (0.0, 0.0))), 2) == ([True, True], None)


def test_grouped_heads_go_together():
    wide = [[1.0] * 4] * 4
    model = model_of(
        self_attn__q_proj=(wide, None),
        self_attn__k_proj=(wide[:2], None),
        self_attn__v_proj=([[1.0] * 4, [0.0] * 4], [0.0, 2.0]),
        self_attn__o_proj=([[0.0, 1.0, 3.0, 4.0]] * 4, [0.0] * 4),
    )
    # Heads 0 and 1 share the first of K and V: O reads head 1. Heads 2 and 3 give 2, times 3 + 4.
    assert heads(model, 4) == ([True, False], [14.0] * 4)
    with torch.no_grad():
        model.layers[0].self_attn.o_proj.weight[:, 1] = 0
    assert heads(model, 4) == ([False, False], [14.0] * 4)
    model.layers[0].self_attn.o_proj.bias = None
    assert heads(model, 4) == ([False, True], None)


def test_activations_by_name():
    x = torch.tensor(1.0, dtype=torch.float64)
    values = {"gelu": 0.841345, "gelu_new": 0.841192, "silu": 0.731059, "relu2": 1.0, "quick_gelu": 0.845796}
    for name, value in values.items():
        assert float(activation_of(Config(activation_function=name))(x)) == pytest.approx(value, abs=1e-6)
    assert activation_of(Config(hidden_act="relu", activation_function="gelu")) is None
    assert activation_of(Config(hidden_act=torch.relu)) is None
    assert activation_of(None) is None
