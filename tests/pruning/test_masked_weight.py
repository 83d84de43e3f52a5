import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods.hard_concrete import CLOSED
from fineprune.pruning.methods.l0 import HardConcrete

# a = (W ⊙ M) x with L = 10 a_0 - a_1, so that dL/da = (10, -1) and, with x = (2, 5),
# dL/dW'_ij = dL/da_i x_j = [[20, 50], [-2, -5]].
W = [[1.0, 2.0], [3.0, -4.0]]
M = [[True, False], [False, True]]
X = (2.0, 5.0)
TO_PRODUCT = [[20.0, 50.0], [-2.0, -5.0]]


def gated(weight, scores):
    return MaskedWeight(weight, scores, gate=HardConcrete(weight))


def layer(masked_class=MaskedWeight, scores=((0.0, 0.0), (0.0, 0.0)), dtype=torch.float32):
    linear = nn.Linear(2, 2, bias=False, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(W))
    scores = None if scores is None else torch.tensor(scores)
    masked = masked_class(linear.weight, scores)
    masked.mask.copy_(torch.tensor(M))
    parametrize.register_parametrization(linear, "weight", masked, unsafe=True)
    return linear, masked


def loss(linear, dtype=torch.float32):
    first, second = linear(torch.tensor(X, dtype=dtype))
    return 10 * first - second


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eq_2(dtype):
    linear, masked = layer(dtype=dtype)
    # a = (1 * 2, -4 * 5)
    assert linear(torch.tensor(X, dtype=dtype)).tolist() == [2.0, -20.0]
    value = loss(linear, dtype)
    assert value.item() == 40.0
    value.backward()
    weight = linear.parametrizations.weight.original
    # dL/dW = dL/dW' ⊙ M: a masked weight gets none
    assert weight.grad.tolist() == [[20.0, 0.0], [0.0, -5.0]]
    # dL/dS = dL/dW' ⊙ W: masked weights' scores get theirs, 50 * 2 and -2 * 3
    assert masked.scores.grad.tolist() == [[20.0, 100.0], [-6.0, 20.0]]
    assert weight.grad.dtype == dtype
    assert masked.scores.grad.dtype == torch.float32
    assert linear.weight.dtype == dtype


def test_eq_4_scores_sum_up_the_movement():
    # Two steps of plain SGD on the scores alone: S = -alpha * 2 * (dL/dW' ⊙ W), as W stays.
    linear, masked = layer()
    optimizer = torch.optim.SGD([masked.scores], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        loss(linear).backward()
        optimizer.step()
    assert masked.scores.tolist() == [[-20.0, -100.0], [6.0, -20.0]]


def test_without_scores_the_mask_alone_takes_part():
    linear, masked = layer(scores=None)
    assert masked.scores is None
    loss(linear).backward()
    assert linear.parametrizations.weight.original.grad.tolist() == [[20.0, 0.0], [0.0, -5.0]]


def test_frozen_weights_still_move_their_scores():
    linear, masked = layer()
    weight = linear.parametrizations.weight.original
    weight.requires_grad_(False)
    loss(linear).backward()
    assert weight.grad is None
    assert masked.scores.grad.tolist() == [[20.0, 100.0], [-6.0, 20.0]]
    linear, masked = layer()
    masked.scores.requires_grad_(False)
    loss(linear).backward()
    assert masked.scores.grad is None


@pytest.mark.parametrize("masked_class", [MaskedWeight, gated])
def test_nothing_but_weight_mask_and_gate_is_saved(masked_class):
    linear, masked = layer(masked_class)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        product = linear.weight
    original = linear.parametrizations.weight.original
    by_place = {tensor.data_ptr(): tensor for tensor in saved}  # gate and product keep one z
    assert by_place.pop(original.data_ptr()).dtype == torch.float32
    assert by_place.pop(masked.mask.data_ptr()).dtype == torch.bool
    assert len(by_place) == (masked_class is gated)
    for gate in by_place.values():
        assert torch.equal(product, original * masked.mask * gate)


def test_a_mask_starts_open_and_contiguous():
    weight = nn.Parameter(torch.zeros(3, 2).t())  # transposed in memory, as some checkpoints are
    masked = MaskedWeight(weight, None)
    assert masked.mask.all()
    assert masked.mask.shape == (2, 3)
    masked.mask.view(-1)  # selection writes it flat


def test_a_gated_gradient_is_that_of_the_sampled_formula():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 20, generator=generator)
    scores = torch.randn(30, 20, generator=generator) * 2
    upstream = torch.randn(30, 20, generator=generator)
    mask = torch.rand(30, 20, generator=generator) < 0.5
    linear = nn.Linear(20, 30, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    masked = gated(linear.weight, scores.clone())
    masked.mask.copy_(mask)
    masked.gate.offset.fill_(-0.7)
    parametrize.register_parametrization(linear, "weight", masked, unsafe=True)
    torch.manual_seed(5)
    product = linear.weight
    (product * upstream).sum().backward()

    reference = scores.clone().requires_grad_()
    torch.manual_seed(5)
    u = torch.rand(30, 20).clamp(1e-6, 1 - 1e-6)
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + reference + 0.7) / (2 / 3))
    z = (1.2 * s - 0.1).clamp(0, 1)
    assert torch.allclose(product, weight * mask * z, atol=1e-5)
    # Through the selection straight-through: the masked weights' gates have a gradient as well.
    (weight * z * upstream).sum().backward()
    assert torch.allclose(masked.scores.grad, reference.grad, atol=1e-4)
    assert masked.scores.grad[~mask].count_nonzero() > 50
    to_weight = linear.parametrizations.weight.original.grad
    assert torch.allclose(to_weight, upstream * mask * z.detach(), atol=1e-5)


def test_gates_are_drawn_in_training_and_expected_in_evaluation():
    linear, _ = layer(gated, scores=((0.0, 0.0), (0.0, 9.0)))
    assert not torch.equal(linear.weight, linear.weight)
    linear.eval()
    # S = 0: half the weight; S = 9: all of it
    assert linear.weight.tolist() == [[0.5, 0.0], [0.0, -4.0]]
    assert torch.equal(linear.weight, linear.weight)
    linear.train()
    assert not torch.equal(linear.weight, linear.weight)


def test_bfloat16_gates():
    linear, masked = layer(gated, dtype=torch.bfloat16)
    torch.manual_seed(0)
    loss(linear, torch.bfloat16).backward()
    assert masked.scores.grad.dtype == torch.float32
    assert linear.parametrizations.weight.original.grad.dtype == torch.bfloat16
    assert linear.eval().weight.dtype == torch.bfloat16


def test_kept_by_mask_and_by_gate():
    scores = ((CLOSED + 0.01, 9.0), (9.0, CLOSED - 0.01))
    _, masked = layer(gated, scores)
    assert masked.kept().tolist() == [[True, False], [False, False]]
    masked.gate.offset.fill_(-1.0)  # logits are S + 1
    assert masked.gate.logits(masked.scores)[1, 1].item() == pytest.approx(CLOSED + 0.99, abs=1e-5)
    assert masked.kept().tolist() == M
    assert layer()[1].kept().tolist() == M


def is_positive_zero(tensor):
    return (tensor == 0) & ~tensor.signbit()


@pytest.mark.parametrize("masked_class", [MaskedWeight, gated])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fold_leaves_positive_zeros(masked_class, dtype):
    linear, masked = layer(masked_class, dtype=dtype)
    masked.mask.copy_(torch.tensor([[True, False], [True, False]]))  # -4 is masked: not -0.0
    folded = masked.fold(linear.parametrizations.weight.original)
    factor = 0.5 if masked_class is gated else 1.0  # the gate at S = 0
    assert folded.tolist() == [[factor, 0.0], [3 * factor, 0.0]]
    assert is_positive_zero(folded[:, 1]).all()
    assert folded.dtype == dtype
    assert torch.equal(folded, linear.eval().weight)


def test_fold_of_a_closed_gate():
    linear, masked = layer(gated, scores=((9.0, 9.0), (9.0, -9.0)))
    masked.mask.fill_(True)
    folded = masked.fold(linear.parametrizations.weight.original)
    assert folded.tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert is_positive_zero(folded[1, 1])


def test_the_gradient_reaches_the_input():
    linear, _ = layer()
    inputs = torch.tensor(X, requires_grad=True)
    (functional.linear(inputs, linear.weight) @ torch.tensor([10.0, -1.0])).backward()
    # W'^T (10, -1) with W' = [[1, 0], [0, -4]]
    assert inputs.grad.tolist() == [10.0, 4.0]
