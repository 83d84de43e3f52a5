"""The paper's Appendix A.1: when the kept connections swap, the training loss does not rise.

One score step by plain SGD gives S' = S - alpha * g_i W_ij x_j, g = dL/da. A connection that
comes in for one that goes out has overtaken it, so that g_i W_ij x_j is lower for the one that
comes in: the sum of g . (a' - a) over the swaps is negative, the loss falls to first order. A
loss whose slope changes by at most 1 per unit of activation rises by no more than
g . (a' - a) + |a' - a|^2 / 2, which is below 0 where activations are small beside the slope.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.selection import top_v


class Layer:
    """One pruned layer, its loss, and the SGD step of its scores and weights."""

    def __init__(self, weight, scores, inputs, loss, density, key=None):
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
        self.linear.weight = nn.Parameter(weight.clone())
        self.masked = MaskedWeight(self.linear.weight, scores.clone())
        parametrize.register_parametrization(self.linear, "weight", self.masked, unsafe=True)
        self.inputs, self.of, self.density, self.key = inputs, loss, density, key
        self.select()

    def select(self):
        top_v([self.masked.scores], self.density, [self.masked.mask], self.key)

    def activations(self):
        return self.linear(self.inputs)

    def loss(self):
        return self.of(self.activations()).item()

    def step(self, score_lr, lr=0.0):
        """Backward and SGD with the masks as they are; returns dL/da."""
        activations = self.activations()
        activations.retain_grad()
        self.of(activations).backward()
        original = self.linear.parametrizations.weight.original
        torch.optim.SGD(
            [{"params": [self.masked.scores], "lr": score_lr}, {"params": [original], "lr": lr}]
        ).step()
        return activations.grad


def far_target(activations):
    """Half the squared distance to a far point: smooth with constant 1, and steep near 0."""
    return (activations - 10).square().sum() / 2


def logistic(activations):
    """Smooth with constant 1/4; its slope at 0 is -1/2."""
    return functional.softplus(-activations).sum()


def random_layer(seed, outputs, inputs, keep, scale, loss):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) * scale
    # Scores close together, so that a step of their size swaps often.
    scores = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) * scale
    x = torch.randn(inputs, generator=generator, dtype=torch.float64)
    return Layer(weight, scores, x, loss, keep / (outputs * inputs))


def swap(layer, score_lr, lr=0.0):
    """One step and a new selection: losses and activations before and after, dL/da, swaps."""
    before = layer.masked.mask.clone()
    gradient = layer.step(score_lr, lr)
    with torch.no_grad():
        old_loss, old = layer.loss(), layer.activations()
        layer.select()
        return (
            old_loss,
            layer.loss(),
            layer.activations() - old,
            gradient,
            int((before ^ layer.masked.mask).sum()),
        )


@pytest.mark.parametrize("loss", [far_target, logistic])
@pytest.mark.parametrize(("outputs", "keep"), [(1, 1), (1, 4), (3, 10)])
def test_a_swap_does_not_raise_the_loss(loss, outputs, keep):
    swapped = several = 0
    for seed in range(150):
        layer = random_layer(seed, outputs, 8, keep, 0.01, loss)
        old, new, change, gradient, differing = swap(layer, score_lr=4.0)
        if not differing:
            assert new == old
            continue
        swapped += 1
        several += differing > 2
        slope = (gradient * change).sum().item()
        assert slope < 0  # to first order the loss falls
        assert new <= old + slope + change.square().sum().item() / 2 + 1e-12  # and this is all there is
    assert swapped >= 20
    assert several >= (20 if keep > 1 else 0)


@pytest.mark.parametrize("lr", [0.0, 1e-6])
@pytest.mark.parametrize("loss", [far_target, logistic])
def test_with_small_activations_the_loss_itself_falls(loss, lr):
    # One output, so that |a' - a| < 2 |g| makes g (a' - a) + (a' - a)^2 / 2 negative. The
    # weights stand still, or take a tiny step.
    swapped = 0
    for seed in range(150):
        layer = random_layer(seed, 1, 8, 1 + seed % 5, 0.01, loss)
        start = layer.loss()
        old, new, change, gradient, differing = swap(layer, score_lr=1.0, lr=lr)
        if differing:
            swapped += 1
            assert change.abs().item() < 2 * 0.45
            assert gradient.abs().item() > 0.45
            assert new < old
            assert new < start
    assert swapped >= 50


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)), min_size=2, max_size=8),
    st.integers(1, 7),
    st.floats(0.01, 10),
)
def test_any_swap_of_one_output(pairs, keep, score_lr):
    assume(keep < len(pairs))
    weight, scores = torch.tensor(pairs, dtype=torch.float64).t()
    layer = Layer(weight[None], scores[None], torch.ones(len(pairs), dtype=torch.float64), far_target, 1.0)
    layer.density = keep / len(pairs)
    layer.select()
    old, new, _, _, differing = swap(layer, score_lr)
    assert new <= old + (1e-9 if differing else 0)


def counterexample(key):
    # softplus(-a) falls as a rises, so weight 1 helps and weight -3 hurts. Kept at first: weight 1,
    # a = 1, dL/da = -sigmoid(-1) = -0.26894. After a step of 1 the scores are
    # 0.5 + 0.26894 * 1 = 0.76894 and 0 - 0.26894 * 3 = -0.80682.
    weight = torch.tensor([[1.0, -3.0]])
    layer = Layer(weight, torch.tensor([[0.5, 0.0]]), torch.ones(2), logistic, 0.5, key)
    assert layer.masked.mask.tolist() == [[True, False]]
    result = swap(layer, score_lr=1.0)
    assert layer.masked.scores.flatten().tolist() == pytest.approx([0.76894, -0.80682], abs=1e-5)
    return layer, result


def test_by_the_size_of_the_score_a_swap_can_raise_the_loss():
    layer, (old, new, _, _, _) = counterexample(torch.abs)
    assert layer.masked.mask.tolist() == [[False, True]]  # 0.80682 > 0.76894
    # softplus(-1) = 0.31326 to softplus(3) = 3.04859
    assert (old, new) == pytest.approx((0.31326, 3.04859), abs=1e-5)


def test_by_the_score_the_same_step_swaps_nothing():
    layer, (old, new, _, _, _) = counterexample(None)
    assert layer.masked.mask.tolist() == [[True, False]]
    assert old == new
