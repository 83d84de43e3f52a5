"""Heads and neurons half by half: what a budget pays for, the fit to the dense model, and whole models."""

import copy

import pytest
import torch
from support import tiny_bert

from fineprune import FinepruneError, calibrate, costs, shrink
from fineprune.pruning.calibration.k_prune import affordable, distance, fitted
from fineprune.pruning.expansion import Lines
from fineprune.pruning.probe import probe_inputs
from fineprune.pruning.units import Grid

UNITS = {"attention": "head", "feed_forward": "neuron"}
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens for matrices:fineprune.FinepruneWarning")


def bert():
    return tiny_bert(num_attention_heads=4, initializer_range=0.5).eval()


@pytest.mark.parametrize(
    ("budget", "heads", "neurons"),
    [
        (
            6,
            [1, 0],
            [1, 1, 0, 0],
        ),  # by score and cost: neurons 3 and 2, head 5/4, nothing for the rest
        (3, [0, 0], [1, 1, 1, 0]),  # no head can be paid after two neurons
        (12, [1, 1], [1, 1, 1, 1]),
    ],
)
def test_a_budget_pays_for_the_best_by_score_and_cost(budget, heads, neurons):
    scores = {"o": torch.tensor([5.0, 1.0]), "f": torch.tensor([3.0, 2.0, 1.0, 1.0])}
    grids = {
        "o": Grid("head", (2,), Lines(1, [0, 1], 1), 3, product=1),
        "f": Grid("neuron", (4,), Lines(1, range(4), 1), 1),
    }
    alive = affordable(scores, grids, budget)
    assert {name: flags.int().tolist() for name, flags in alive.items()} == {"o": heads, "f": neurons}


def test_columns_are_fitted_to_the_dense_outputs():
    """Two inputs that were equal, of which the second is gone and the first has lost half its size.

    W x_dense = (1 + 2) x; x = (x/2, 0): W' = 6 in the first column gives the same.
    """
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0)).double()
    z = torch.cat([x, x, x / 2, 0 * x], dim=1)
    gram = 2 / 100 * z.mT @ z
    weight = torch.tensor([[1.0, 2.0]]).double()
    matrix = fitted(weight, gram, torch.tensor([0, 1]), torch.tensor([True, False]), "o")
    # Damping by 1 % of the diagonal's mean, half of q: (3 q * 2 + 0.005 q) / (q + 0.005 q), q = E[x^2] / 4.
    torch.testing.assert_close(matrix, torch.tensor([[6.005 / 1.005, 0]]).double())
    assert distance(weight, matrix, gram) == pytest.approx(1 - 6.005 / 1.005 / 6)
    none = fitted(weight, gram, torch.tensor([0, 1]), torch.tensor([False, False]), "o")
    assert not none.any()
    assert distance(weight, none, gram) == pytest.approx(1)


@torch.no_grad()
def test_a_model_keeps_its_share_and_more_answers_than_by_kwon():
    dense = bert()
    texts = [probe_inputs(dense, 12, seed) for seed in range(8)]
    before = costs(dense).multiply_adds
    expected = torch.cat([dense(**batch).logits for batch in texts])
    moved = {}
    for method in ("kwon", "k_prune"):
        model = copy.deepcopy(dense)
        done = calibrate(model, texts, 0.5, method, UNITS)
        assert done.method == method
        moved[method] = float((torch.cat([model(**batch).logits for batch in texts]) - expected).norm())
        assert not any(parameter.grad is not None for parameter in model.parameters())
        assert not any(module._forward_pre_hooks for module in model.modules())
        shrunk = shrink(model)
        assert not shrunk.refused
        # Less than all of the budget is spent by K-prune if the last half keeps every unit.
        assert 0.45 * before < costs(model).nonzero_multiply_adds <= 0.5 * before
    assert moved["k_prune"] < 0.9 * moved["kwon"]


@torch.no_grad()
def test_all_units_stay_at_density_1():
    model = bert()
    batch = probe_inputs(model, 12, 0)
    expected = model(**batch).logits
    done = calibrate(model, [batch], 1.0, "k_prune", UNITS)
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-3, atol=1e-4)
    assert done.error < 1e-3


def test_what_is_refused():
    model = bert()
    batch = probe_inputs(model, 12, 0)
    shares = {
        "attention": {"unit": "head", "density": 0.5},
        "feed_forward": {"unit": "neuron", "density": 0.5},
    }
    with pytest.raises(FinepruneError, match="method='k_prune': shares one density among heads and neurons"):
        calibrate(model, [batch], 0.1, "k_prune", shares)
    headless = tiny_bert("Model", num_attention_heads=4).eval()
    with pytest.raises(FinepruneError, match="method='k_prune': the model gives no logits of classes"):
        calibrate(headless, [batch], 0.5, "k_prune", UNITS)
