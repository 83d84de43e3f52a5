"""Units inside of heads (GRAIN, structures.md 13.3), in whole models."""

import pytest
import torch
from architectures.models import made, make
from pruning.test_structures import assert_resumes_alike, bert, grids, train
from support import tiny_bert
from torch import nn

from fineprune import FinepruneError, PruningConfig, calibrate, finalize, prepare, shrink, summary
from fineprune.config import METHODS
from fineprune.pruning.dead_units import remaining_units
from fineprune.pruning.finalizing import fold
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune.training.run.mask_snapshot import Recorder

VALUES = {"attention": "value_dim", "feed_forward": "neuron"}
BOTH = {"attention": ["query_dim", "value_dim"], "feed_forward": "neuron"}
UNITS = [name for name, traits in METHODS.items() if not (traits.holds_zeros or traits.elements_only)]
LAYER = "bert.encoder.layer.0.attention."
READER = f"{LAYER}output.dense"
WITHOUT_ROTARY = ["BERT", "ALBERT", "GPT-2", "MPNet", "BART", "ViT", "Wav2Vec2", "T5"]
ARCHITECTURES = ["BERT", "ALBERT", "DeBERTa-v2", "ModernBERT", "GPT-2", "Llama", "Qwen3", "BART", "ViT", "T5"]


def spread(model):
    """Give every bias a value: those of a new model are 0 and would hide what they do."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def cut(model, structure, dead):
    """Prune units by hand: `dead` has flags by the name of the matrix that reads them."""
    pruner = prepare(model, PruningConfig("magnitude", 0.5, structure=structure, warmup=0, cooldown=1), 2)
    for target in pruner.targets:
        target.masked.units.copy_(~dead.get(target.name, torch.zeros_like(target.masked.units)))
        target.masked.spread()
    return pruner


def flags(count, *places):
    dead = torch.zeros(count, dtype=torch.bool)
    for place in places:
        dead[place] = True
    return dead


def test_grids_of_value_dims():
    found = grids(bert(), VALUES)
    assert list(found) == [
        f"bert.encoder.layer.{n}.{end}output.dense" for n in "01" for end in ("attention.", "")
    ]
    values = found[READER]
    # A row of V and a column of O of 32 weights each, in 4 heads of 8; the product of attention stays.
    assert (values.kind, values.shape, values.weights, values.head_size) == ("value_dim", (32,), 64, 8)
    assert values.multiply_adds == values.weights
    assert [(lines.kind, lines.axis) for lines in values.followers] == [("V", 0)]
    mask = values.expansion.expand(~flags(32, 9))
    assert (~mask).nonzero()[:, 1].unique().tolist() == [9]


def test_grids_of_both():
    found = grids(bert(), BOTH)
    assert [(name.removeprefix(LAYER), grid.kind) for name, grid in found.items()][:3] == [
        ("self.key", "query_dim"),
        ("output.dense", "value_dim"),
        ("bert.encoder.layer.0.output.dense", "neuron"),
    ]
    queries = found[f"{LAYER}self.key"]
    assert (queries.shape, queries.weights, queries.multiply_adds, queries.head_size) == ((32,), 64, 64, 8)
    assert [(lines.kind, lines.axis) for lines in queries.followers] == [("Q", 0)]
    mask = queries.expansion.expand(~flags(32, 9))
    assert (~mask).nonzero()[:, 0].unique().tolist() == [9]


# In GPT-2's c_attn, of inputs x outputs, Q has columns 0 to 15 and K 16 to 31.
def test_query_dims_of_one_matrix():
    name, grid = next(iter(grids(make("GPT-2"), {"attention": "query_dim"}).items()))
    assert name.endswith("c_attn")
    assert [(lines.matrix, lines.of(3).tolist()) for lines in grid.followers] == [(name, [3])]
    assert (~grid.expansion.expand(~flags(16, 3))).nonzero()[:, 1].unique().tolist() == [19]


# A row of V is shared by two queries: h + h * H/G = 16 + 2 * 16; of a fused matrix V is the last third.
@pytest.mark.parametrize(
    ("name", "weights", "values"), [("Llama", 48, [0]), ("GPT-2", 32, [32]), ("ModernBERT", 32, [32])]
)
def test_value_dims_of_other_layouts(name, weights, values):
    grid = next(grid for grid in grids(make(name), VALUES).values() if grid.kind == "value_dim")
    assert grid.weights == weights
    assert [lines.of(0).tolist() for lines in grid.followers] == [values]


# Without query dims, Q and K stay whole, and do not count.
@pytest.mark.parametrize("method", UNITS)
@pytest.mark.parametrize(("structure", "weights"), [(VALUES, 12288), (BOTH, 16384)])
def test_a_run_of_every_method(method, structure, weights):
    model = spread(bert())
    windows = {"mask_interval": 2, "options": {"window": 2}} if method in ("platon", "pins") else {}
    config = PruningConfig(method, 0.5, structure=structure, warmup=2, cooldown=2, **windows)
    pruner = prepare(model, config, 8)
    train(model, pruner)
    assert pruner.density == pytest.approx(0.5, abs=64 / weights)
    during, table = outputs(model, probe_inputs(model)), summary(model)
    assert (table.density, table.total) == (pruner.density, weights)
    finalize(model)
    assert difference(during, outputs(model, probe_inputs(model))) < 1e-5
    after = {layer.name: layer for layer in summary(model).layers}
    assert [after[layer.name] for layer in table.layers] == list(table.layers)
    assert all(layer.density == 1 for name, layer in after.items() if name not in map(_name, table.layers))


def _name(layer):
    return layer.name


def test_local_scope_keeps_as_many_in_each_layer():
    model = bert()
    pruner = prepare(model, PruningConfig("magnitude", 0.25, structure=VALUES, warmup=0, cooldown=2), 4)
    train(model, pruner, 4)
    assert [int(target.masked.units.sum()) for target in pruner.targets] == [8, 16, 8, 16]
    assert pruner.left["value_dims"] == (16, 64)


@pytest.mark.parametrize(
    ("name", "structure"),
    [(name, VALUES) for name in ARCHITECTURES] + [(name, BOTH) for name in WITHOUT_ROTARY],
)
def test_real_architectures(name, structure):
    model = spread(make(name))
    config = PruningConfig("magnitude", 0.5, scope="global", structure=structure, warmup=0, cooldown=2)
    pruner = prepare(model, config, 3)
    for _ in range(3):
        pruner.step()
    during = outputs(model, probe_inputs(model))
    table = {layer.name: layer for layer in summary(model).layers}
    finalize(model)
    assert difference(during, outputs(model, probe_inputs(model))) < 1e-5
    after = {layer.name: layer for layer in summary(model).layers}
    assert {name: after[name] for name in table} == table
    assert shrink(model).difference < 1e-5


# Two queries share a row of K and of V, in one matrix that is interleaved by group: h + 2 h.
def test_grouped_queries_without_rotary_positions():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2}
    settings = sizes | {"vocab_size": 50, "new_decoder_architecture": True, "alibi": True}
    model = spread(made("FalconForSequenceClassification", settings))
    config = PruningConfig("magnitude", 0.5, scope="global", structure=BOTH, warmup=0, cooldown=2)
    pruner = prepare(model, config, 3)
    for _ in range(3):
        pruner.step()
    assert [target.masked.grid.weights for target in pruner.targets] == [96, 96, 64] * 2
    during, table = outputs(model, probe_inputs(model)), summary(model)
    assert table.density == pruner.density == pytest.approx(0.5, abs=48 / sum(m.total for m in table.layers))
    finalize(model)
    assert difference(during, outputs(model, probe_inputs(model))) < 1e-5
    assert summary(model).layers == table.layers


# Head 1 of layer 0 has no value dim, head 2 has one: the first is empty, the second is not.
def test_a_head_without_values_is_removed():
    model = spread(bert())
    pruner = cut(model, VALUES, {READER: flags(32, range(8, 16), range(17, 24))})
    assert pruner.left["heads"] == (7, 8)
    assert pruner.left["value_dims"] == (49, 64)
    snapshot = Recorder(pruner).take()
    counted = remaining_units(snapshot.matrices, model.config.to_dict())
    assert [(layer.heads_left, layer.heads) for layer in counted] == [(3, 4), (4, 4)]
    before = outputs(model, probe_inputs(model))
    shrunk = shrink(fold(model))
    assert [kept.units for kept in shrunk.heads] == [(0, 2, 3), (0, 1, 2, 3)]
    assert shrunk.refused == ()
    assert difference(before, outputs(model, probe_inputs(model))) < 1e-5
    values = model.get_submodule(f"{LAYER}self.value").weight
    assert values.shape == (24, 32)
    assert (values != 0).any(dim=1).tolist() == [True] * 9 + [False] * 7 + [True] * 8  # zeros inside stay


def test_a_pruned_dim_can_return():
    model = spread(bert())
    pruner = prepare(model, PruningConfig("movement", 0.5, structure=VALUES, warmup=0, cooldown=1), 2)
    target = pruner.targets[0]
    target.masked.units.copy_(~flags(32, 5))
    target.masked.spread()
    model(**probe_inputs(model)).logits.square().sum().backward()
    assert target.scores.grad[5] != 0
    assert target.weight.grad[:, 5].count_nonzero() == 0


# A gate on a line of K, bias included, has the gradient that the row's weights have alone: what the bias
# adds to the products of a query is the same for every key, and the gradients of a softmax add up to 0.
def test_the_gradient_of_a_query_dim():
    model = spread(make("BERT"))
    gate = torch.ones(16, requires_grad=True)
    key = model.get_submodule(f"{LAYER}self.key")
    key.register_forward_hook(lambda _module, _inputs, output: output * gate)
    pruner = prepare(model, PruningConfig("movement", 0.5, structure=BOTH, warmup=0, cooldown=1), 2)
    model(**probe_inputs(model)).logits.square().sum().backward()
    scores = next(target for target in pruner.targets if target.module is key).scores
    assert scores.grad.abs().min() > 1e-4
    assert torch.allclose(scores.grad, gate.grad, rtol=1e-3)


@pytest.mark.parametrize("make_model", [bert, lambda: make("GPT-2")], ids=["bert", "gpt2"])
def test_resuming_gives_the_same_run(make_model):
    assert_resumes_alike(make_model, BOTH)


class Normed(nn.Module):
    """A model with a norm over all heads before O."""

    def __init__(self):
        super().__init__()
        self.bert = bert()
        self.config = self.bert.config
        layer = self.bert.bert.encoder.layer[0].attention
        layer.output.dense.register_forward_pre_hook(lambda _, args: args[0] / args[0].std(-1, keepdim=True))

    def forward(self, **inputs):
        return self.bert(**inputs)


def test_values_that_something_else_reads():
    model = Normed()
    with pytest.raises(FinepruneError, match="silencing value_dim 0 of each head where it is read and"):
        prepare(model, PruningConfig("magnitude", 0.5, structure=VALUES), 10, probe_inputs(model.bert))


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "ModernBERT", "DeBERTa-v3"])
def test_positions_that_mix_query_dims(name):
    message = (
        r"silencing query_dim 0 of each head .* \(rotary and relative positions mix the dims of Q and K; "
    )
    for structure in ({"attention": "query_dim"}, BOTH):
        with pytest.raises(FinepruneError, match=message):
            prepare(make(name), PruningConfig("magnitude", 0.5, structure=structure), 10)


def test_projections_of_relative_positions():
    config = PruningConfig("magnitude", 0.5, structure=BOTH)
    with pytest.raises(FinepruneError, match=r"has .*query_proj, .*pos_query_proj as Q of its query_dims"):
        prepare(make("DeBERTa-v2"), config, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"exclude": "value"},
            "a value_dim needs all of its matrices, and targets or exclude take .*output.dense without",
        ),
        ({"targets": ["query", "intermediate.dense"]}, "attention='value_dim': targets or exclude leave"),
        ({"density": 0.001}, "keeps less than one value_dim, which is 3.12% of bert"),
    ],
)
def test_what_is_refused(settings, message):
    structure = {"attention": "value_dim"}
    with pytest.raises(FinepruneError, match=message):
        prepare(bert(), PruningConfig("magnitude", **{"structure": structure} | settings), 10)


def test_single_projections_do_not_make_dims():
    model = tiny_bert()
    for layer in model.bert.encoder.layer:
        layer.attention.self.odd = layer.attention.self.value
        del layer.attention.self.value
    config = PruningConfig("magnitude", 0.5, structure={"attention": "value_dim"}, exclude="odd")
    with pytest.raises(FinepruneError, match="has nothing as V of its value_dims, and one"):
        prepare(model, config, 10)


def test_calibrate_cuts_none():
    with pytest.raises(FinepruneError, match="calibrate cuts elements, or units that can be removed"):
        calibrate(bert(), [{}], 0.5, structure=VALUES)
