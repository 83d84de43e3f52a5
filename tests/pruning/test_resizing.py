"""Smaller matrices: literal lines of each layout, sizes that follow, the meta device, and undoing it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures.shrinking import SHRINKS, with_heads
from torch import nn

from fineprune.pruning.layout import layout_of
from fineprune.pruning.resizing import Cut, Resizing, resize


def model_of(heads, **shapes):
    """A model whose first block has these matrices; weights number rows, and in hundredths columns."""
    block = nn.Module()
    for name, (rows, columns) in shapes.items():
        parent, _, last = name.rpartition("__")
        linear = nn.Linear(columns, rows)
        with torch.no_grad():
            linear.weight.copy_(torch.arange(rows)[:, None] + torch.arange(columns) / 100)
            linear.bias.copy_(torch.arange(rows))
        if not hasattr(block, parent):
            block.add_module(parent, nn.Module())
        block.get_submodule(parent).add_module(last, linear)
    model = nn.Module()
    other = nn.Module()
    other.fc1, other.fc2 = nn.Linear(2, 3), nn.Linear(3, 2)
    model.layers = nn.ModuleList([block, other])
    settings = {"num_attention_heads": heads}
    model.config = SimpleNamespace(to_dict=lambda: dict(settings))
    return model


def rows_of(linear):
    assert linear.out_features == len(linear.weight) == len(linear.bias)
    assert linear.bias.tolist() == linear.weight[:, 0].tolist()
    return linear.weight[:, 0].int().tolist()


def columns_of(linear):
    assert linear.in_features == linear.weight.shape[1]
    return (linear.weight[0] * 100).round().int().tolist()


def cut(model, units, **options):
    (block,) = (block for block in layout_of(model) if block.layer == 0)
    (half,) = (*block.attentions, *block.feed_forwards)
    resizing = Resizing(model)
    resizing.cut(Cut(half, np.array(units), **options))
    return resizing


def test_grouped_heads():
    model = model_of(
        4,
        self_attn__q_proj=(8, 8),
        self_attn__k_proj=(4, 8),
        self_attn__v_proj=(4, 8),
        self_attn__o_proj=(8, 8),
    )
    cut(model, [1])
    attention = model.layers[0].self_attn
    assert rows_of(attention.q_proj) == [4, 5, 6, 7]
    assert rows_of(attention.k_proj) == rows_of(attention.v_proj) == [2, 3]
    assert columns_of(attention.o_proj) == [4, 5, 6, 7]
    assert attention.o_proj.bias.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("name", "kept"), [("Wqkv", [2, 3, 8, 9, 14, 15]), ("query_key_value", [6, 7, 8, 9, 10, 11])]
)
def test_one_matrix_for_q_k_and_v(name, kept):
    model = model_of(3, **{f"attention__{name}": (18, 6), "attention__o_proj": (6, 6)})
    cut(model, [1])
    assert rows_of(model.layers[0].attention.get_submodule(name)) == kept
    assert columns_of(model.layers[0].attention.o_proj) == [2, 3]


def test_gate_and_up_in_one_matrix():
    model = model_of(1, mlp__gate_up_proj=(10, 4), mlp__down_proj=(4, 5))
    cut(model, [0, 1, 3, 4])  # neuron 2 has rows 2 and 7
    assert rows_of(model.layers[0].mlp.gate_up_proj) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert columns_of(model.layers[0].mlp.down_proj) == [0, 1, 3, 4]


def test_zeros_and_what_is_added():
    model = model_of(1, mlp__fc1=(3, 2), mlp__fc2=(2, 3))
    cut(model, [1, 2], zeros=np.array([1]), added=torch.tensor([0.5, -1.0], dtype=torch.float64))
    first, second = model.layers[0].mlp.fc1, model.layers[0].mlp.fc2
    assert first.weight.tolist() == [[0.0, 0.0], pytest.approx([2.0, 2.01])]
    assert first.bias.tolist() == [0.0, 2.0]
    assert second.weight.tolist() == [pytest.approx([0.0, 0.02]), pytest.approx([0.0, 1.02])]
    assert second.bias.tolist() == [0.5, 0.0]


def test_undone():
    model = with_heads("GPT-2")
    before = {name: (id(module), dict(vars(module))) for name, module in model.named_modules()}
    resizing = Resizing(model)
    for block in layout_of(model):
        for half in (*block.attentions, *block.feed_forwards):
            resizing.cut(Cut(half, np.array([0])))
    attention = model.transformer.h[0].attn
    assert (attention.num_heads, attention.split_size, attention.head_dim, attention.embed_dim) == (
        1,
        4,
        4,
        16,
    )
    assert (attention.c_attn.nf, attention.c_attn.nx) == (12, 16)
    assert (attention.c_proj.nf, attention.c_proj.nx) == (16, 4)
    assert [tuple(block.attentions[0].sizes) for block in layout_of(model)] == [(1, 1, 4)] * 2
    assert [block.feed_forwards[0].neurons for block in layout_of(model)] == [1, 1]
    resizing.undo()
    after = {name: (id(module), dict(vars(module))) for name, module in model.named_modules()}
    assert list(before) == list(after)
    assert before == after


@pytest.mark.parametrize("name", [name for name, entry in SHRINKS.items() if entry])
def test_shapes_on_the_meta_device(name):
    """As a shrunk model is loaded: the shapes, and the sizes that the attentions have."""
    live = with_heads(name)
    with torch.device("meta"):
        empty = type(live)(live.config)
    widths = {}
    for model in (live, empty):
        blocks = layout_of(model)
        halves = [half for block in blocks for half in (*block.attentions, *block.feed_forwards)]
        widths = {half.name: 1 + number % 2 for number, half in enumerate(halves)}
        resize(model, widths)
        found = {}
        for block in layout_of(model):
            found |= {half.name: half.sizes.groups for half in block.attentions}
            found |= {half.name: half.neurons for half in block.feed_forwards}
        assert found == widths
    assert {k: v.shape for k, v in live.state_dict().items()} == {
        k: v.shape for k, v in empty.state_dict().items()
    }
    sizes = [
        {key: value for key, value in vars(module).items() if type(value) is int} for module in live.modules()
    ]
    assert sizes == [
        {key: value for key, value in vars(module).items() if type(value) is int}
        for module in empty.modules()
    ]
