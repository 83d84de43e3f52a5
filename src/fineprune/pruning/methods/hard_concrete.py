"""The hard-concrete gate of L0 regularization (Louizos, Welling, Kingma 2018), elementwise.

A logit S becomes a gate in [0, 1] that is exactly 0 or 1 with positive probability, and whose
expected count of open gates has a closed form.
"""

import math

import torch
from torch import Tensor

BETA = 2 / 3  # b, the temperature
LEFT, RIGHT = -0.1, 1.1  # l and r: the stretched interval that the gate is clipped from
INITIAL = 2.197  # the reference's first logit: nine gates in ten open
CLOSED = math.log(-LEFT / RIGHT)  # at this logit and below, the test-time gate is 0


def sample(scores: Tensor) -> Tensor:
    """Z of one forward pass: u ~ U(0, 1), s = sigmoid((logit u + S) / b), clipped (r - l) s + l."""
    noise = torch.rand_like(scores).clamp_(1e-6, 1 - 1e-6).logit_()
    return noise.add_(scores).div_(BETA).sigmoid_().mul_(RIGHT - LEFT).add_(LEFT).clamp_(0, 1)


def slope(gate: Tensor) -> Tensor:
    """F of Eq. 3 = (r - l) / b * s (1 - s) where 0 < z < 1, else 0; s is read back from z."""
    s = (gate - LEFT) / (RIGHT - LEFT)
    inside = (gate > 0) & (gate < 1)
    return s.mul(1 - s).mul_((RIGHT - LEFT) / BETA).mul_(inside)


def expected(scores: Tensor) -> Tensor:
    """The gate at test time, without noise: clip((r - l) sigmoid(S) + l)."""
    return torch.sigmoid(scores).mul_(RIGHT - LEFT).add_(LEFT).clamp_(0, 1)


def open_probability(scores: Tensor) -> Tensor:
    """P(z > 0) = sigmoid(S - b log(-l / r)): its sum is E[L0]."""
    return torch.sigmoid(scores - BETA * CLOSED)
