"""Magnitude pruning whose pruned weights go on training: shares of their gradient, and a pull to 0."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from torch.nn.utils import parametrize

from fineprune import PruningConfig, finalize, prepare
from fineprune.pruning.masked_weight import Decayed, MaskedWeight


def prepared(options):
    return prepare(blocks(), PruningConfig("magnitude", density=0.25, warmup=2, options=options), TOTAL)


@pytest.mark.parametrize(
    ("share", "decay", "expected"), [(1.0, 0.1, [5.1, 5.0]), (0.5, 0.0, [2.5, 5.0]), (0.0, 0.0, [0.0, 5.0])]
)
def test_the_gradient_by_hand(share, decay, expected):
    # dL/dW' = (5, 5), W = (1, 2), M = (0, 1)
    linear = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
    masked = MaskedWeight(linear.weight, None, weight_gradient=Decayed(3.0, decay))
    masked.mask[0, 0] = False
    masked.get_buffer("flow").fill_(share)
    parametrize.register_parametrization(linear, "weight", masked, unsafe=True)
    out = linear(torch.ones(1, 2))
    assert out.item() == 2.0
    (5 * out).sum().backward()
    assert linear.parametrizations.weight.original.grad.tolist()[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # t_i = 2, T - t_f = 14: x = 6/12 after 8 steps, 9/12 after 11
        ({"weight_gradient": "decayed"}, [1.0, 0.5**3, 0.25**3, 0.0, 0.0]),
        ({"weight_gradient": "decayed", "flow": "linear"}, [1.0, 0.5, 0.25, 0.0, 0.0]),
        ({"weight_gradient": "dense"}, [1.0] * 5),
        ({"pruned_decay": 0.1}, [0.0] * 5),
    ],
)
def test_the_share_of_pruned_weights_by_step(options, expected):
    pruner = prepared(options)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    shares = []
    for _ in range(TOTAL):
        train(pruner, 1, optimizer=optimizer)
        shares.append(pruner.targets[0].masked.get_buffer("flow").item())
    assert [shares[step - 1] for step in (2, 8, 11, 14, TOTAL)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "options", [{"weight_gradient": "dense"}, {"weight_gradient": "decayed"}, {"pruned_decay": 0.1}]
)
def test_a_run_trains_pruned_weights_and_ends_as_an_ordinary_model(options):
    pruner, keys = prepared(options), set(blocks().state_dict())
    optimizer = pruner.optimizer(torch.optim.SGD, 1e-2)
    train(pruner, 8, optimizer=optimizer)
    target = pruner.targets[0]
    cut = ~target.masked.mask
    before = target.weight.detach()[cut]
    train(pruner, 1, optimizer=optimizer)
    assert (target.weight.detach()[cut] != before).all()
    assert train(pruner, TOTAL - 9, optimizer=optimizer)[-1] == 0.25
    assert set(finalize(pruner.model).state_dict()) == keys


def test_a_resume_is_bit_for_bit():
    options = {"weight_gradient": "decayed", "flow": "linear", "pruned_decay": 0.01}
    assert_resumes(lambda: prepared(options), 9)
