"""Heads and neurons by Fisher information: gradients of gates, the search, swaps, and whole models."""

import copy

import pytest
import torch
from support import tiny_bert

from fineprune import FinepruneError, calibrate, costs, shrink
from fineprune.pruning.calibration.kwon import answers, class_logits, gate_gradients, search, swapped
from fineprune.pruning.expansion import Lines
from fineprune.pruning.layout import layout_of
from fineprune.pruning.probe import probe_inputs
from fineprune.pruning.units import Grid

UNITS = {"attention": "head", "feed_forward": "neuron"}
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens for matrices:fineprune.FinepruneWarning")


def bert():
    return tiny_bert(num_attention_heads=4, initializer_range=0.5).eval()


def batches(model, labels=False):
    found = [probe_inputs(model, 12, seed) for seed in range(3)]
    more = {"labels": torch.arange(2)} if labels else {}
    return [
        batch | {name: value[: len(batch["input_ids"])] for name, value in more.items()} for batch in found
    ]


def test_the_gradient_of_a_gate_is_that_of_its_columns():
    """A gate multiplies what W reads, so its gradient is the sum of dL/dW * W over the unit's columns."""
    model = bert()
    half = layout_of(model)[0].attentions[0]
    (name,) = [lines.matrix for lines in half.lines if lines.kind == "O"]
    reader = model.get_submodule(name)
    unit_of = torch.arange(16) // 4
    grid = Grid("head", (4,), Lines(1, unit_of.tolist(), 16), 256)
    (batch, *_) = batches(model, labels=True)
    (found,) = gate_gradients(model, [batch], {name: reader}, {name: grid})[name]
    model(**batch).loss.backward()
    products = (reader.weight.grad * reader.weight).sum(0).double()
    expected = torch.zeros(4).double().index_add_(0, unit_of, products.detach())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    torch.nn.init.zeros_(model.classifier.weight)  # so that the loss hears nothing
    with pytest.raises(FinepruneError, match="the loss of these batches depends on no head or neuron"):
        gate_gradients(model, [batch], {name: reader}, {name: grid})
    assert not reader._forward_pre_hooks


@pytest.mark.parametrize(
    ("density", "heads", "neurons"),
    [
        (0.5, [1, 0], [1, 1, 0, 0]),  # of 12: one head and 2 neurons are worth 10, 4 neurons 7
        (0.25, [0, 0], [1, 1, 1, 0]),  # 3 neurons; no head can be paid
        (1.0, [1, 1], [1, 1, 1, 1]),
    ],
)
def test_the_best_number_of_heads(density, heads, neurons):
    importance = {"o": torch.tensor([5.0, 1.0]), "f": torch.tensor([3.0, 2.0, 1.0, 1.0])}
    grids = {
        "o": Grid("head", (2,), Lines(1, [0, 1], 1), 3, product=1),
        "f": Grid("neuron", (4,), Lines(1, range(4), 1), 1),
    }
    alive = search(importance, grids, density)
    assert {name: flags.int().tolist() for name, flags in alive.items()} == {"o": heads, "f": neurons}
    with pytest.raises(FinepruneError, match=r"density=0.01: keeps less than one neuron"):
        search(importance, grids, 0.01)


def test_units_of_one_kind_that_differ_in_cost():
    """Of 11 multiply-adds half pays for the cheap one alone, whatever the other is worth."""
    importance = {"a": torch.tensor([9.0]), "b": torch.tensor([1.0])}
    grids = {
        "a": Grid("feed_forward", (1,), Lines(1, [0], 1), 10),
        "b": Grid("feed_forward", (1,), Lines(1, [0], 1), 1),
    }
    for density, kept in ((0.5, [False, True]), (0.95, [False, True]), (1.0, [True, True])):
        alive = search(importance, grids, density)
        assert [bool(flags) for flags in alive.values()] == kept
    with pytest.raises(FinepruneError, match="keeps less than one feed_forward"):
        search(importance, grids, 0.01)


def test_answers_of_a_decoder_are_those_of_its_own_tokens():
    """Two texts of the encoder with padding, of the decoder without."""
    batch = {"attention_mask": torch.tensor([[1, 0], [1, 1]]), "decoder_input_ids": torch.ones(2, 2)}
    logits = torch.zeros(2, 2, 5)
    assert answers(logits, batch, two_stacks=True).shape == (4, 5)
    assert answers(logits, batch).shape == (3, 5)
    labeled = {"attention_mask": torch.ones(2, 2), "labels": torch.tensor([[1, -100], [-100, -100]])}
    assert answers(logits, labeled, two_stacks=True).shape == (1, 5)
    assert answers(logits, {"attention_mask": batch["attention_mask"]}, two_stacks=True).shape == (3, 5)


def test_layers_that_share_a_weight_keep_their_own_biases():
    """Neurons that are always the same change no answer when they go, in either layer."""
    model = bert()
    one, other = (layer for layer in model.bert.encoder.layer)
    other.intermediate.dense.weight = one.intermediate.dense.weight
    other.output.dense.weight = one.output.dense.weight
    for layer in (one, other):
        torch.nn.init.zeros_(layer.intermediate.dense.weight)
        torch.nn.init.ones_(layer.intermediate.dense.bias)
    given = batches(model)
    before = model(**given[0]).logits
    done = calibrate(model, given, 0.5, "sparsegpt", {"feed_forward": "neuron"})
    torch.testing.assert_close(model(**given[0]).logits, before, rtol=1e-3, atol=1e-4)
    assert len(done.matrices) == 2  # each weight once


def test_units_are_swapped_where_gradients_cancel():
    # Without units 1 and 2 the gradients add up to 2; without 2 and 3, to -0.5.
    gradients = torch.tensor([[2.0, 1.0, 1.0, -1.5]]).double()
    alive = swapped(gradients, torch.tensor([True, False, False, True]))
    assert alive.tolist() == [True, True, False, False]
    assert swapped(gradients, torch.ones(4, dtype=torch.bool)).all()


@pytest.mark.parametrize("labels", [False, True])
def test_a_model_is_cut_to_a_share_of_its_multiply_adds(labels):
    model = bert()
    before = costs(model).multiply_adds
    done = calibrate(model, batches(model, labels), 0.5, "kwon", UNITS)
    assert done.method == "kwon"
    assert done.error < 1
    assert not any(parameter.grad is not None for parameter in model.parameters())
    shrunk = shrink(model)
    assert not shrunk.refused
    # A neuron has 32 weights: less than one is missing.
    assert 0.5 * before - 128 * 32 < costs(model).nonzero_multiply_adds <= 0.5 * before


def padded(batch, count):
    """The same texts, with padding behind each."""
    return {
        name: torch.cat([value, value.new_zeros(len(value), count)], dim=1) for name, value in batch.items()
    }


@pytest.mark.parametrize("method", ["kwon", "k_prune"])
def test_padded_tokens_have_no_say(method):
    model = tiny_bert(
        "ForTokenClassification", num_attention_heads=4, initializer_range=0.5, max_position_embeddings=40
    ).eval()
    texts = [probe_inputs(model, 12, seed) for seed in range(3)]
    kept = []
    for given in (texts, [padded(batch, 20) for batch in texts]):
        cut = copy.deepcopy(model)
        calibrate(cut, given, 0.5, method, UNITS)
        kept.append({name: value != 0 for name, value in cut.named_parameters() if value.ndim == 2})
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_no_padded_token_can_be_an_answer():
    model = tiny_bert("ForQuestionAnswering", max_position_embeddings=40).eval()
    batch = padded(probe_inputs(model, 12, 0), 20)
    start, end = class_logits(model(**batch), batch, "kwon")
    for logits in (start, end):
        assert answers(logits, batch).shape == (len(batch["input_ids"]), 32)
        assert not logits.softmax(-1)[:, 12:].any()


def test_all_heads_of_a_layer_may_go():
    model = bert()
    calibrate(model, batches(model), 0.05, "kwon", UNITS)
    assert costs(model).nonzero_multiply_adds > 0
    with pytest.raises(FinepruneError, match=r"keeps less than one head, .*; give a higher density$"):
        calibrate(bert(), batches(model), 0.05, "wanda", UNITS)


def test_what_is_refused():
    model = bert()
    shares = {
        "attention": {"unit": "head", "density": 0.5},
        "feed_forward": {"unit": "neuron", "density": 0.5},
    }
    with pytest.raises(FinepruneError, match="method='kwon': shares one density among heads and neurons"):
        calibrate(model, batches(model), 0.1, "kwon", shares)
    with pytest.raises(
        FinepruneError, match=r"method='kwon': cuts heads .*--units\); .*allowed are magnitude"
    ):
        calibrate(model, batches(model), 0.5, "kwon")
    headless = tiny_bert("Model", num_attention_heads=4).eval()
    with pytest.raises(FinepruneError, match="gives no loss on these batches, and no logits"):
        calibrate(headless, batches(headless), 0.5, "kwon", UNITS)
    several = tiny_bert(num_attention_heads=4, problem_type="multi_label_classification").eval()
    for method, remedy in (("kwon", "give batches with labels, or use"), ("k_prune", "use")):
        with pytest.raises(FinepruneError, match=f"this model gives several labels; {remedy} method='sparse"):
            calibrate(several, batches(several), 0.5, method, UNITS)
