"""Any model with empty heads and neurons: smaller, with the same answers, or refused."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures.models import ARCHITECTURES, make
from architectures.shrinking import OTHERS, SHRINKS, empty, with_heads
from architectures.structures import page
from support import tiny_bert

from fineprune import FinepruneError, PruningConfig, finalize, prepare, shrink
from fineprune.pruning import shrink as shrinking
from fineprune.pruning.layout import layout_of
from fineprune.pruning.origin import origin_of
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune.pruning.resizing import Cut, Resizing

CAN = [name for name, entry in SHRINKS.items() if entry]


def random_units(seed):
    """As `empty` takes it: other units, and other numbers of them, in each half."""
    rng = np.random.default_rng(seed)

    def choose(_layer, _kind, units):
        return sorted(rng.choice(units, rng.integers(1, units), replace=False).tolist())

    return choose


def half_of_the(chosen):
    """Every other unit of one kind, all of the other."""
    return lambda _layer, kind, units: list(range(kind == chosen, units, 1 + (kind == chosen)))


def none_in_places(layer, kind, units):
    """No head in layer 0, no neuron in layer 1."""
    return [] if kind == ("heads", "neurons")[layer % 2] else list(range(units))


def shrunk_and_compared(model, **options):
    """What `shrink` says; the answers must be those of before."""
    batches = [probe_inputs(model), probe_inputs(model, 9, 3)]
    before = [outputs(model, batch) for batch in batches]
    done = shrink(model, **options)
    after = [outputs(model, batch) for batch in batches]
    assert max(map(difference, before, after)) <= 1e-5
    assert done.difference <= 1e-5
    return done


def kept_by(done):
    return {half.name: [unit for unit in half.units if unit not in half.zeros] for half in done.heads}, {
        half.name: [unit for unit in half.units if unit not in half.zeros] for half in done.neurons
    }


def expected_of(model, kept, heads, neurons="yes"):
    """The kept units by half where each kind is removed or not."""
    all_heads = {a.name: list(range(a.sizes.heads)) for b in layout_of(model) for a in b.attentions}
    all_neurons = {f.name: list(range(f.neurons)) for b in layout_of(model) for f in b.feed_forwards}
    return (
        {name: kept[name] if heads == "yes" else units for name, units in all_heads.items()},
        {name: kept[name] if neurons == "yes" else units for name, units in all_neurons.items()},
    )


@pytest.mark.parametrize("name", CAN)
def test_units_of_any_number(name):
    model = with_heads(name)
    ways = ("read",) if name == "BLOOM" else ("read", "made")  # its activation has no name
    kept = empty(model, random_units(2), ways)
    expected = expected_of(model, kept, SHRINKS[name].heads)
    done = shrunk_and_compared(model)
    assert kept_by(done) == expected
    stacks = {half.stack for half in done.heads}
    refused = 0 if SHRINKS[name].heads == "yes" else len(stacks)
    assert [reason.startswith("heads of ") for reason in done.refused] == [True] * refused
    assert done.parameters[1] < done.parameters[0]
    assert done.parameters[1] == sum(parameter.numel() for parameter in model.parameters())
    widths = {half.name: len(half.units) for half in done.heads}
    assert {a.name: a.sizes.heads for b in layout_of(model) for a in b.attentions} == widths


@pytest.mark.parametrize("name", CAN)
def test_a_half_without_units_keeps_one_of_zeros(name):
    model = with_heads(name)
    empty(model, none_in_places, ("read",))
    sizes, neurons = layout_of(model)[0].attentions[0].sizes, layout_of(model)[0].feed_forwards[0].neurons
    done = shrunk_and_compared(model)
    first = [str(half) for half in done.heads if half.layer == 0]
    last = [half for half in done.neurons if half.layer == 1]
    zero = f"0 of 4 ({sizes.heads // sizes.groups} more kept, zero)"
    assert set(first) == {zero if SHRINKS[name].heads == "yes" else "4 of 4"}
    assert {str(half) for half in last} == ({f"0 of {neurons} (1 more kept, zero)"} if last else set())
    assert [half.layer for half in last].count(1) == (0 if name == "ALBERT" else len(done.neurons) / 2)
    for half in last:
        (forward,) = [f for b in layout_of(model) for f in b.feed_forwards if f.name == half.name]
        for part in forward.lines:
            assert not model.get_submodule(part.matrix).weight.any()


@pytest.mark.parametrize("name", CAN)
def test_equal_widths_make_an_ordinary_model_where_the_class_takes_them(name):
    model = with_heads(name)
    empty(model, half_of_the("neurons"), ("read",))
    done = shrunk_and_compared(model)
    assert done.refused == ()
    assert done.ordinary == (SHRINKS[name].ordinary != "none")
    empty(model, half_of_the("heads"), ("read",))
    done = shrunk_and_compared(model)
    assert bool(done.refused) == (SHRINKS[name].heads == "no")
    assert done.ordinary == (SHRINKS[name].ordinary == "both" or name in ("MPNet", "T5", "T5 v1.1"))
    if done.ordinary:
        config = copy.deepcopy(model.config)
        shapes = {key: tensor.shape for key, tensor in type(model)(config).state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", [name for name, entry in SHRINKS.items() if entry is None])
def test_without_heads_and_neurons_that_can_be_told(name):
    with pytest.raises(FinepruneError, match=r"heads and neurons are not known, only matrices such as \w+\."):
        shrink(make(name))


def deberta():
    """DeBERTa-v2 with every other head of four emptied."""
    model = with_heads("DeBERTa-v2")
    empty(model, half_of_the("heads"), ("read",))
    return model


def test_the_proof_finds_what_gives_no_error(monkeypatch):
    """DeBERTa-v2 views its 2 heads of 4 as 4 heads of 2 if its number of heads does not follow."""
    model = deberta()
    monkeypatch.setattr(Resizing, "_set_sizes", lambda *_: None)
    before = outputs(model, probe_inputs(model))
    resizing = Resizing(model)
    for block in layout_of(model):
        resizing.cut(Cut(block.attentions[0], np.array([1, 3])))
    assert difference(before, outputs(model, probe_inputs(model))) > 1e-2
    resizing.undo()
    done = shrunk_and_compared(model)
    (reason,) = done.refused
    assert reason.startswith("heads of deberta.encoder.layer: the smaller model's answers differ by 0.")
    assert [str(half) for half in done.heads] == ["4 of 4"] * 2
    monkeypatch.undo()
    done = shrunk_and_compared(model)
    assert done.refused == ()
    assert [half.units for half in done.heads] == [(1, 3)] * 2
    assert [block.attentions[0].sizes for block in layout_of(model)] == [(2, 2, 4)] * 2


def test_phi3_takes_no_unequal_numbers_of_heads():
    model = with_heads("Phi-3")
    kept = empty(model, lambda layer, _kind, units: range(layer, units), ("read",))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if "self_attn" in key}
    done = shrunk_and_compared(model)
    (reason,) = done.refused
    assert reason.startswith("heads of model.layers: ")
    assert kept["model.layers.1.self_attn"] == [2, 3]
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert model.config.num_attention_heads == 4


def test_zeros_of_single_weights_are_enough():
    model = tiny_bert(hidden_size=16, num_attention_heads=4, initializer_range=0.3)
    prepare(model, PruningConfig("magnitude", 0.03, warmup=0, cooldown=1), 2).step()
    finalize(model)
    total = parameters_of(model)
    done = shrunk_and_compared(model.eval())
    assert done.parameters == (total, parameters_of(model))
    assert sum(len(half.units) for half in done.neurons) < 64
    assert done.refused == ()


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def wide_bert(**settings):
    return tiny_bert(initializer_range=0.3, **settings)


@torch.no_grad()
def without_neurons(model, layer, neurons):
    model.bert.encoder.layer[layer].output.dense.weight[:, neurons] = 0
    return model


def test_the_original_numbers_go_on():
    model = without_neurons(wide_bert(), 0, range(4, 32))
    done = shrink(model)
    assert [half.units for half in done.neurons] == [(0, 1, 2, 3), tuple(range(32))]
    again = shrink(without_neurons(model, 0, [0, 2]))
    assert [(half.units, half.of) for half in again.neurons] == [((1, 3), 32), (tuple(range(32)), 32)]
    assert origin_of(model).neurons == again.neurons
    assert (again.ordinary, origin_of(model).ordinary) == (False, False)
    nothing = shrink(model)
    assert nothing.neurons == again.neurons
    assert nothing.parameters == (again.parameters[1],) * 2
    assert (nothing.difference, nothing.ordinary) == (0.0, False)


def test_a_model_without_an_empty_unit_stays_as_it_is():
    model = wide_bert()
    done = shrink(model)
    assert done.parameters[0] == done.parameters[1]
    assert (done.ordinary, done.refused, done.difference) == (True, (), 0.0)
    assert origin_of(model) is None


@pytest.mark.parametrize(
    ("alive", "multiple", "left", "zeros"),
    [(5, 8, 8, 3), (8, 8, 8, 0), (0, 8, 8, 8), (9, 5, 10, 1), (5, 64, 32, 0)],
)
def test_widths_are_multiples(alive, multiple, left, zeros):
    model = without_neurons(wide_bert(), 0, range(alive, 32))
    done = shrunk_and_compared(model, round_to=multiple)
    first, second = done.neurons
    assert (len(first.units), len(first.zeros)) == (left, zeros)
    assert len(second.units) == 32
    layer = model.bert.encoder.layer[0]
    assert (layer.intermediate.dense.out_features, layer.output.dense.in_features) == (left, left)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = without_neurons(wide_bert(), 1, range(3, 32)).to(dtype)
    done = shrink(model.train())
    assert done.refused == ()
    assert done.difference < 1e-5
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(module.training for module in model.modules())
    assert len(done.neurons[1].units) == 3


def test_frozen_stays_frozen_and_attributes_follow():
    model = wide_bert(num_attention_heads=4)
    layer = model.bert.encoder.layer[0]
    layer.intermediate.dense.weight.requires_grad = False
    with torch.no_grad():
        layer.attention.output.dense.weight[:, 4:8] = 0
    shrink(without_neurons(model, 0, [0]))
    layer = model.bert.encoder.layer[0]
    assert not layer.intermediate.dense.weight.requires_grad
    assert layer.intermediate.dense.bias.requires_grad
    attention = layer.attention.self
    assert (attention.num_attention_heads, attention.all_head_size, attention.attention_head_size) == (
        3,
        12,
        4,
    )
    assert model.config.num_attention_heads == 4
    assert model.config.intermediate_size == 32


def test_a_wrong_constant_is_put_back(monkeypatch):
    model = wide_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight[3] = 0
        model.bert.encoder.layer[0].intermediate.dense.bias[3] = 1.0
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(shrinking, "activation_of", lambda _config: torch.exp)
    (reason,) = shrink(model).refused
    assert reason.startswith("neurons of bert.encoder.layer: the smaller model's answers differ by 0.")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    monkeypatch.undo()
    assert shrunk_and_compared(model).refused == ()


def test_what_shares_a_weight_stays():
    model = without_neurons(without_neurons(wide_bert(), 0, [1]), 1, [1])
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    done = shrink(model)
    assert done.refused == tuple(
        f"neurons of {name}: {name}.intermediate.dense shares a parameter with another layer"
        for name in ("bert.encoder.layer.0", "bert.encoder.layer.1")
    )


def test_what_is_parametrized_stays():
    model = wide_bert()
    for name in ("intermediate", "output"):
        dense = getattr(model.bert.encoder.layer[0], name).dense
        torch.nn.utils.parametrizations.weight_norm(dense, dim=1)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.parametrizations.weight.original0[0, 1] = 0
    (reason,) = shrink(model).refused
    assert reason.endswith("intermediate.dense is parametrized; remove its parametrization first")


def test_what_torch_prunes_by_itself_stays():
    from torch.nn.utils import prune

    model = without_neurons(wide_bert(), 0, [1])
    prune.identity(model.bert.encoder.layer[0].intermediate.dense, "weight")
    (reason,) = shrink(model).refused
    assert reason.endswith("intermediate.dense is parametrized; remove its parametrization first")


def test_what_has_a_hook_of_accelerate_stays():
    from accelerate.hooks import ModelHook, add_hook_to_module

    model = without_neurons(wide_bert(), 0, [1])
    add_hook_to_module(model.bert.encoder.layer[0].output.dense, ModelHook())
    (reason,) = shrink(model).refused
    assert reason.endswith(
        "output.dense has a forward method of its own, as with device_map; load the model without"
    )


def test_printed():
    model = without_neurons(wide_bert(), 0, range(2, 32))
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.dense.weight.zero_()
    lines = str(shrink(model)).splitlines()
    assert lines[1] == "bert.encoder.layer.1.attention  0 of 2 (1 more kept, zero) heads"
    assert lines[2] == "bert.encoder.layer.0            2 of 32 neurons"
    assert lines[-1] == "its layers have sizes of their own: it opens where fineprune is imported"
    assert [line.partition(":")[0] for line in lines[4:7]] == [
        "parameters",
        "FLOPs",
        "largest difference of an answer",
    ]


def test_the_page_is_what_the_command_writes():
    committed = Path(__file__).resolve().parents[2] / "docs" / "structures.md"
    assert committed.read_text(encoding="utf-8") == page(), (
        "run: python tests/architectures/structures.py > docs/structures.md"
    )


def test_the_table_has_every_architecture():
    assert set(ARCHITECTURES) | set(OTHERS) == set(SHRINKS)
