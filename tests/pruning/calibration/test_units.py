"""Heads and neurons without labels: which go, what the others become, and that they can be removed."""

import pytest
import torch
from architectures.models import make
from pruning.calibration.test_layer_cuts import GRAM, layer
from support import tiny_bert

from fineprune import FinepruneError, calibrate, shrink
from fineprune.pruning.calibration import units
from fineprune.pruning.calibration.layer import Layer
from fineprune.pruning.layout import layout_of
from fineprune.pruning.probe import probe_inputs

UNITS = {"attention": "head", "feed_forward": "neuron"}
NEURONS = torch.arange(2)

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens for matrices:fineprune.FinepruneWarning")


def test_the_unit_of_least_loss_goes_and_the_other_is_fitted():
    """Two rows (1, 2) and (1, 0) of H = [[2, 1], [1, 2]], H^-1_jj = 2/3: losses 2 * 1.5 = 3 and 4 * 1.5 = 6.

    The second column then is 2 + 1/2 and 0 + 1/2.
    """
    weight = torch.tensor([[1.0, 2.0], [1.0, 0.0]]).double()
    cut, alive = units.fitted(Layer("matrix", weight, GRAM, damping=0.0), NEURONS, 1)
    assert alive.tolist() == [False, True]
    torch.testing.assert_close(cut, torch.tensor([[0, 2.5], [0, 0.5]]).double())


def test_wanda_takes_the_columns_of_largest_norm_as_they_are():
    weight = torch.tensor([[1.0, 2.0], [1.0, 0.0]]).double()
    cut, alive = units.by_norms(
        Layer("matrix", weight, torch.diag(torch.tensor([9.0, 4.0])).double()), NEURONS, 1
    )
    assert alive.tolist() == [True, False]  # 9 * 2 = 18, 4 * 4 = 16
    assert cut.tolist() == [[1, 0], [1, 0]]


def test_units_that_were_always_0_go_first_and_stay_as_they_are():
    one, unit_of = layer(4, 6, dead=(1, 4)), torch.arange(6)
    assert units.fitted(one, unit_of, 4)[1].tolist() == [True, False, True, True, False, True]
    cut, alive = units.fitted(one, unit_of, 5)
    assert torch.equal(cut[:, 1], one.weight[:, 1])
    assert alive.tolist() == [True, True, True, True, False, True]
    assert torch.equal(units.refitted(one, unit_of, alive)[:, 1], one.weight[:, 1])


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_fitted_is_the_best_for_its_units(size):
    one, unit_of = layer(5, 12, samples=300), torch.arange(12) // size
    cut, alive = units.fitted(one, unit_of, 12 // size // 2)
    kept = alive[unit_of]
    assert int(alive.sum()) == 12 // size // 2
    exact = torch.linalg.solve(one.hessian[kept][:, kept], one.hessian[kept] @ one.weight.mT).mT
    torch.testing.assert_close(cut[:, kept], exact)
    assert not cut[:, ~kept].any()
    assert one.error(cut) < one.error(units.by_norms(one, unit_of, 12 // size // 2)[0])


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "T5", "BART"])
def test_the_cut_can_be_removed(name):
    model = make(name)
    neurons = [half.neurons for block in layout_of(model) for half in block.feed_forwards]
    few = name in ("T5", "Llama")  # heads that cannot go; one group of heads
    structure = {"feed_forward": "neuron"} if few else UNITS
    calibrate(model, [probe_inputs(model, seed=seed) for seed in range(3)], structure=structure)
    done = shrink(model)
    assert done.refused == ()
    assert [len(half.units) for half in done.neurons] == [width // 2 for width in neurons]
    if not few:
        assert [len(half.units) for half in done.heads] == [half.of // 2 for half in done.heads]


def test_the_bias_takes_the_mean_of_what_goes():
    """A neuron that is always the same changes no answer when it goes."""
    model = tiny_bert(initializer_range=0.5).eval()
    batches = [probe_inputs(model, 12, seed) for seed in range(4)]
    for block in model.bert.encoder.layer:
        block.intermediate.dense.weight.data[::2] = 0
        block.intermediate.dense.bias.data[::2] = 2
    before = model(**batches[0]).logits
    done = calibrate(model, batches, structure={"feed_forward": "neuron"})
    torch.testing.assert_close(model(**batches[0]).logits, before, rtol=1e-3, atol=1e-5)
    assert done.error < 1e-2
    assert [matrix.error is None for matrix in done.matrices] == [False, True] * 2
    assert done.density == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "row"}, "calibrate cuts elements, or units that can be removed"),
        ({"structure": {"attention": "element", "feed_forward": "neuron"}}, "elements of one part"),
        (
            {"structure": UNITS, "method": "alps"},
            "method='alps': allowed are kwon, k_prune, wanda",
        ),
        ({"structure": UNITS, "exclude": ["query"]}, "a head needs all of its matrices"),
    ],
)
def test_refused(settings, message):
    model = tiny_bert()
    with pytest.raises(FinepruneError, match=message):
        calibrate(model, [probe_inputs(model)], **settings)
