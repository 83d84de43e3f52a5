import math

import pytest
import torch

from fineprune.pruning.methods import hard_concrete
from fineprune.pruning.methods.hard_concrete import CLOSED, expected, open_probability, sample, slope


def test_constants():
    assert pytest.approx(-math.log(11)) == CLOSED  # log(0.1 / 1.1)
    assert (hard_concrete.BETA, hard_concrete.LEFT, hard_concrete.RIGHT) == (2 / 3, -0.1, 1.1)


@pytest.mark.parametrize(
    ("score", "gate", "probability"),
    [
        # sigmoid(log 9) = 0.9: 1.2 * 0.9 - 0.1; and 9 * 11^(2/3) = 44.5148 to 1
        (math.log(9), 0.98, 44.5148 / 45.5148),
        # the reference's start, 2.197 = log 9 - 0.000225: sigmoid = 0.89998
        (2.197, 0.979976, 0.978024),
        # sigmoid = 1/2: 0.6 - 0.1; sigmoid(2/3 log 11) = 4.94609 / 5.94609
        (0.0, 0.5, 0.831822),
        # sigmoid(-log 11) = 1/12: 0.1 - 0.1; sigmoid(-1/3 log 11) = 1 / (1 + 2.22398)
        (CLOSED, 0.0, 0.310176),
        # sigmoid(log 11) = 11/12: 1.1 - 0.1
        (-CLOSED, 1.0, 54.4070 / 55.4070),  # sigmoid(5/3 log 11): 11 * 4.94609 to 1
        (-9.0, 0.0, 0.000610),  # exp(-9) * 4.94609 = 0.00061040
        (9.0, 1.0, 0.999975),  # exp(9) * 4.94609 = 40079
    ],
)
def test_test_time_gate_and_open_probability(score, gate, probability):
    logit = torch.tensor([score])
    assert expected(logit).item() == pytest.approx(gate, abs=1e-6)
    assert open_probability(logit).item() == pytest.approx(probability, abs=1e-5)


def test_sample_is_the_formula():
    scores = torch.linspace(-6, 6, 1001)
    torch.manual_seed(3)
    gates = sample(scores)
    torch.manual_seed(3)
    u = torch.rand(1001)
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + scores) / (2 / 3))
    assert torch.allclose(gates, (1.2 * s - 0.1).clamp(0, 1), atol=1e-5)
    assert scores[0] == -6  # read only


@pytest.mark.parametrize("score", [2.197, 0.0, CLOSED])
def test_gates_are_open_as_often_as_said(score):
    torch.manual_seed(0)
    count = 100_000
    gates = sample(torch.full((count,), score))
    share = open_probability(torch.tensor(score)).item()
    assert gates.min() >= 0
    assert gates.max() <= 1
    # four standard errors of a share
    error = 4 * math.sqrt(share * (1 - share) / count)
    assert (gates > 0).double().mean().item() == pytest.approx(share, abs=error)
    # P(z = 1) = 1 - P(z < 1) = sigmoid(S - log(11) * 2/3), by symmetry
    closed = torch.sigmoid(torch.tensor(score - 2 / 3 * math.log(11))).item()
    assert (gates == 1).double().mean().item() == pytest.approx(closed, abs=error + 2e-3)


def test_slope_literal():
    # z = 1/2: s = 1/2, f = 1.2 / (2/3) * 1/4 = 0.45; clipped gates have none
    # z = 0.2: s = 0.3 / 1.2 = 1/4, f = 1.8 * 3/16 = 0.3375
    gates = torch.tensor([0.5, 0.2, 0.0, 1.0])
    assert slope(gates).tolist() == pytest.approx([0.45, 0.3375, 0, 0], abs=1e-6)


def test_slope_is_the_derivative_of_the_gate():
    torch.manual_seed(1)
    scores = torch.linspace(-4, 4, 500, dtype=torch.float64).requires_grad_()
    u = torch.rand(500, dtype=torch.float64)
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + scores) / (2 / 3))
    z = (1.2 * s - 0.1).clamp(0, 1)
    z.sum().backward()
    assert (z == 0).any()
    assert (z == 1).any()
    assert ((z > 0) & (z < 1)).any()
    assert torch.allclose(slope(z.detach()), scores.grad, atol=1e-12)
