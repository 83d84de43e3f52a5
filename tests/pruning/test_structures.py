"""Methods on heads, neurons, rows and blocks of whole models."""

import copy
from types import SimpleNamespace

import pytest
import torch
from architectures.models import make
from support import tiny_bert
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, load, prepare, save_compact, shrink, summary
from fineprune.config import METHODS
from fineprune.pruning import units
from fineprune.pruning.finalizing import fold, masked_modules
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods.l0 import HardConcrete
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune.pruning.selection import round_count
from fineprune.pruning.structures import grids_of
from fineprune.pruning.targets import find_targets

HEADS = {"attention": "head", "feed_forward": "neuron"}
BLOCK = "encoder.layer.0."


def bert():
    """Two layers of 4 heads and 64 neurons: a head has 1,024 weights, a neuron 64, all 16,384."""
    return tiny_bert(hidden_size=32, num_attention_heads=4, intermediate_size=64)


def grids(model, structure, **settings):
    config = PruningConfig("magnitude", 0.5, structure=structure, **settings)
    (found,) = grids_of(model, find_targets(model, config.targets, config.exclude), config)
    return found


def train(model, pruner, steps=8):
    inputs = probe_inputs(model)
    optimizer = pruner.optimizer(torch.optim.AdamW, lr=1e-3)
    if pruner.measures:
        pruner.measure_on(lambda: [outputs_of(model, inputs).square().mean()])
    model.train()
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        (outputs_of(model, inputs).square().mean() + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
    model.eval()


def outputs_of(model, inputs):
    return next(iter(model(**inputs).values()))


# structures.md 12.3: dL/dS of a neuron is the sum of dL/dW' ⊙ W over its column of FFN-out.
def test_the_gradient_of_a_neuron():
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]))
    model = SimpleNamespace(weight=weight)
    masked = MaskedWeight(model.weight, torch.zeros(2), units.columns("w", weight))
    masked.units.copy_(torch.tensor([False, True]))
    masked.spread()
    masked(weight).backward(torch.tensor([[2.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]))
    assert masked.scores.grad.tolist() == [-1.0, 1.0]  # whatever the mask
    assert weight.grad.tolist() == [[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]


# structures.md 12.4: y = W_out relu(W_in x); masked at the reader alone, a pruned neuron has a gradient.
def test_a_pruned_neuron_can_return():
    first, second = torch.ones(2, 1), nn.Parameter(torch.tensor([[0.5, 1.0]]))
    masked = MaskedWeight(second, torch.zeros(2), units.columns("w", second))
    masked.units.copy_(torch.tensor([False, True]))
    masked.spread()
    y = torch.relu(torch.ones(1, 1) @ first.T) @ masked(second).T
    (-y).backward()
    assert masked.scores.grad.tolist() == [-0.5, -1.0]


# structures.md 12.17: a gate of 0.5 halves the column of FFN-out, and FFN-in stays.
def test_a_gate_on_a_neuron():
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    masked = MaskedWeight(weight, torch.tensor([0.0, 9.0]), units.columns("w", weight), HardConcrete(weight))
    masked.eval()
    product = masked(weight)
    assert product.tolist() == [[0.5, 2.0], [1.5, 4.0]]
    assert masked.fold(weight).tolist() == product.tolist()
    assert masked.kept_weights() == 4
    product.sum().backward()
    assert weight.grad.tolist() == [[0.5, 1.0], [0.5, 1.0]]
    assert masked.scores.grad[0] > 0 == masked.scores.grad[1]  # the second gate is at its end


def test_grids_of_heads_and_neurons():
    found = grids(bert(), HEADS)
    assert list(found) == [
        f"bert.encoder.layer.{n}.{end}output.dense" for n in "01" for end in ("attention.", "")
    ]
    assert [(g.kind, g.shape, g.weights, g.cost) for g in found.values()] == [
        ("head", (4,), 1024, 1024),
        ("neuron", (64,), 64, 64),
    ] * 2
    heads = found["bert.encoder.layer.0.attention.output.dense"]
    assert [(lines.kind, lines.axis) for lines in heads.followers] == [("Q", 0), ("K", 0), ("V", 0)]
    mask = heads.expansion.expand(torch.tensor([True, False, True, True]))
    assert (~mask).nonzero()[:, 1].unique().tolist() == [*range(8, 16)]


def test_a_head_costs_its_product_of_attention_too():
    # BERT-base: a head is worth 128 neurons in weights, 138.67 in multiply-adds at 128 tokens.
    model = tiny_bert(hidden_size=768, num_attention_heads=12, intermediate_size=8, num_hidden_layers=2)
    by_kind = {grid.kind: grid.cost for grid in grids(model, HEADS, budget="flops", scope="global").values()}
    assert by_kind["head"] / by_kind["neuron"] == pytest.approx(138.67, abs=0.01)
    by_kind = {grid.kind: grid.cost for grid in grids(model, HEADS).values()}
    assert by_kind["head"] / by_kind["neuron"] == 128


@pytest.mark.parametrize(
    ("name", "heads", "neuron"),
    [
        ("GPT-2", 4 * 8 * 16, 2 * 16),
        ("Llama", 6 * 8 * 16, 3 * 16),  # a group of two queries: 2 dh + 2 dh · 2; gated
        ("ModernBERT", 4 * 8 * 16, 3 * 16),
        ("DeBERTa-v2", 6 * 8 * 16, 2 * 16),  # two more projections
        ("ALBERT", 4 * 8 * 16, 2 * 16),
    ],
)
def test_weights_of_a_unit(name, heads, neuron):
    model = make(name)
    by_kind = {grid.kind: grid.weights for grid in grids(model, HEADS).values()}
    assert by_kind == {"head": heads, "neuron": neuron}
    total = sum(int(torch.tensor(g.shape).prod()) * g.weights for g in grids(model, HEADS).values())
    assert total == sum(module.weight.numel() for module in find_targets(model).values())


UNITS = [name for name, traits in METHODS.items() if not (traits.holds_zeros or traits.elements_only)]


@pytest.mark.parametrize("method", UNITS)
@pytest.mark.parametrize("structure", [HEADS, (4, 1), {"attention": "row", "feed_forward": "neuron"}])
def test_a_run_of_every_method(method, structure):
    model = bert()
    windows = {"mask_interval": 2, "options": {"window": 2}} if method in ("platon", "pins") else {}
    pruner = prepare(
        model, PruningConfig(method, 0.5, structure=structure, warmup=2, cooldown=2, **windows), 8
    )
    train(model, pruner)
    assert pruner.density == pytest.approx(0.5, abs=512 / 16384)  # half a head
    during, table = outputs(model, probe_inputs(model)), summary(model)
    assert (table.density, table.total) == (pruner.density, 16384)
    finalize(model)
    assert difference(during, outputs(model, probe_inputs(model))) < 1e-5
    assert summary(model).layers == table.layers  # followers are zero now
    assert not list(masked_modules(model))


def test_local_scope_gives_equal_widths():
    model = bert()
    pruner = prepare(model, PruningConfig("magnitude", 0.5, structure=HEADS, warmup=0, cooldown=2), 4)
    train(model, pruner, 4)
    assert [int(target.masked.units.sum()) for target in pruner.targets] == [2, 32, 2, 32]
    assert pruner.density == 0.5


def test_parts_with_densities_of_their_own():
    structure = {
        "attention": {"unit": "head", "density": 0.5},
        "feed_forward": {"unit": "neuron", "density": 0.125},
    }
    model = bert()
    pruner = prepare(model, PruningConfig("soft_movement", structure=structure, warmup=0, cooldown=2), 4)
    train(model, pruner, 4)
    kept = {"head": 0, "neuron": 0}
    for target in pruner.targets:
        kept[target.masked.grid.kind] += int(target.masked.units.sum())
    assert kept == {"head": 4, "neuron": 16}
    assert pruner.density == (4 * 1024 + 16 * 64) / 16384
    # A head takes 2 n d = 2 * 128 * 8 multiply-adds a token beside its 1,024 weights.
    flops = (4 * (1024 + 2048) + 16 * 64) / (8 * (1024 + 2048) + 128 * 64)
    assert pruner.left == {"parameters": 5120 / 16384, "flops": flops, "heads": (4, 8), "neurons": (16, 128)}


def test_a_part_that_is_not_named_stays_whole():
    model = bert()
    pruner = prepare(model, PruningConfig("magnitude", 0.25, structure={"feed_forward": "neuron"}), 10)
    assert [target.masked.grid.kind for target in pruner.targets] == ["neuron"] * 2
    assert summary(model).total == 2 * 64 * 64


def test_whole_halves():
    model = bert()
    structure = {"attention": "attention", "feed_forward": "feed_forward"}
    pruner = prepare(model, PruningConfig("soft_movement", 0.5, structure=structure, warmup=0, cooldown=2), 4)
    assert [target.masked.grid.weights for target in pruner.targets] == [4096] * 4
    train(model, pruner, 4)
    finalize(model)
    table = {layer.name: layer.kept for layer in summary(model).layers}
    assert sorted({kept == 0 for kept in table.values()}) == [False, True]
    assert sum(table.values()) == 8192


def test_neurons_are_rounded():
    scores = torch.tensor([0.5, 0.9, 0.1, 0.8, 0.2, 0.7])
    for before, after in (([1], [1, 3]), ([1, 3, 5], [1, 3, 5, 0]), ([], []), (range(6), range(6))):
        mask = torch.zeros(6, dtype=torch.bool)
        mask[list(before)] = True
        round_count(scores, mask, 2)
        assert mask.nonzero().squeeze(1).tolist() == sorted(after)
    model = bert()
    config = PruningConfig("soft_movement", 0.4, structure=HEADS, round_to=16, warmup=0, cooldown=2)
    pruner = prepare(model, config, 4)
    train(model, pruner, 4)
    assert {int(target.masked.units.sum()) % 16 for target in pruner.targets[1::2]} == {0}


def test_a_rounding_that_would_leave_out_nothing():
    config = PruningConfig("magnitude", 0.5, structure=HEADS, round_to=64)
    with pytest.raises(FinepruneError, match=r"round_to=64: .* reads 64 neurons, so that all would stay"):
        prepare(tiny_bert(intermediate_size=64), config, 10)
    prepare(tiny_bert(intermediate_size=65), config, 10)


def test_gates_of_rounded_neurons_stay_open():
    model = bert()
    config = PruningConfig("l0", 0.4, structure={"feed_forward": "neuron"}, round_to=16, warmup=0, cooldown=2)
    pruner = prepare(model, config, 4)
    train(model, pruner, 4)
    for target in pruner.targets:
        assert int(target.masked.kept_units().sum()) == int(target.masked.units.sum())
        assert int(target.masked.units.sum()) % 16 == 0


def test_a_part_of_a_prepared_model_is_finalized():
    model = bert()
    pruner = prepare(model, PruningConfig("magnitude", 0.5, structure=HEADS, warmup=0, cooldown=2), 4)
    train(model, pruner, 4)
    expected = [layer.kept for layer in summary(model).layers]
    assert [layer.kept for layer in summary(model.bert).layers] == expected
    finalize(model.bert)
    assert [layer.kept for layer in summary(model).layers] == expected


def test_resuming_gives_the_same_run():
    assert_resumes_alike(bert, HEADS)


def assert_resumes_alike(make_model, structure):
    """A model whose pruning is stored and taken up in another one has the weights of the first."""
    config = PruningConfig("soft_movement", 0.5, structure=structure, warmup=0, cooldown=2)
    whole, part = make_model(), make_model()
    pruner = prepare(whole, config, 6)
    train(whole, pruner, 3)
    folded = copy.deepcopy(whole)
    state, tensors = pruner.state_dict(), pruner.tensors()
    fold(folded)
    part.load_state_dict(folded.state_dict())
    # Followers are zero in the folded weights; what they were is in the tensors.
    again = prepare(part, config, 6)
    again.load_state_dict(state)
    again.load_tensors(tensors)
    for name, value in whole.state_dict().items():
        assert torch.equal(part.state_dict()[name], value), name


def test_a_wrapped_model_is_finalized():
    model = bert()
    pruner = prepare(model, PruningConfig("magnitude", 0.5, structure=HEADS, warmup=0, cooldown=2), 4)
    train(model, pruner, 4)
    wrapped = nn.Sequential(model)
    expected = summary(model).layers
    finalize(wrapped)
    assert summary(model).layers == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": (5, 1)}, "5 x 1 blocks do not divide 32 x 32; block rows that divide 32: 1, 2, 4, 8"),
        (
            {"structure": HEADS, "exclude": "query"},
            "layer.0.attention: a head needs all of its matrices, and targets or exclude take .*output.dense "
            "without .*query; exclude the whole attention",
        ),
        (
            {"structure": HEADS, "density": 0.1},
            r"density=0.1: keeps less than one head, which is 25.00% of bert.*; give a "
            r'higher density or scope="global"',
        ),
        (
            {"structure": {"attention": "head"}, "density": 0.01, "scope": "global"},
            "density=0.01: keeps less than one head, which is 12.50% of what is ranked; give",
        ),
        ({"structure": {"attention": "head"}, "targets": "intermediate.dense"}, "none of the 2 chosen"),
    ],
)
def test_what_is_refused(settings, message):
    model = bert()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FinepruneError, match=message):
        prepare(model, PruningConfig("magnitude", **settings), 10)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert list(before) == list(model.state_dict())


@pytest.mark.parametrize("structure", ["row", "column", (4, 1)])
def test_units_of_a_conv1d_are_outputs_and_inputs(structure, tmp_path):
    model = make("GPT-2")
    pruner = prepare(
        model, PruningConfig("magnitude", 0.5, structure=structure, scope="local", warmup=0, cooldown=0), 1
    )
    pruner.step()
    finalize(model)
    kept = model.transformer.h[0].mlp.c_fc.weight.T != 0  # 64 outputs, 16 inputs
    assert int(kept.sum()) == 512
    assert int((~kept).all(1).sum()) == (32 if structure == "row" else 0)
    assert int((~kept).all(0).sum()) == (8 if structure == "column" else 0)
    if structure == (4, 1):
        four = kept.unflatten(0, (16, 4))
        assert torch.equal(four.any(1), four.all(1))
    inputs = probe_inputs(model)
    expected = outputs(model, inputs)
    save_compact(model, tmp_path / "model")
    assert difference(expected, outputs(load(tmp_path / "model"), inputs)) == 0
    shrink(model)
    assert difference(expected, outputs(model, inputs)) < 1e-5


def test_models_whose_units_cannot_be_told():
    with pytest.raises(FinepruneError, match=r"the heads of .* cannot be told"):
        prepare(make("SqueezeBERT"), PruningConfig("magnitude", 0.5, structure={"attention": "head"}), 10)


def test_elements_beside_neurons_in_one_ranking():
    model = tiny_bert(hidden_size=512, num_attention_heads=4, intermediate_size=8)
    config = PruningConfig(
        "soft_movement", 0.5, structure={"attention": "element", "feed_forward": "neuron"}, warmup=0
    )
    pruner = prepare(model, config, 10)
    with pytest.raises(FinepruneError, match="give each part of the model a density of its own"):
        train(model, pruner, 4)
