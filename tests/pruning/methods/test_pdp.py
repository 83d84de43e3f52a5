"""PDP: the literal values of its soft mask and its gradient, and what a run does with it."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from torch import nn

from fineprune import PruningConfig, finalize, prepare
from fineprune.pruning.methods.pdp import SoftMask

TEMPERATURE = 1 / 2.25  # with t = 1.5, tau = 1


def prepared(**options):
    return prepare(blocks(), PruningConfig("pdp", density=0.25, warmup=2, options=options), TOTAL)


def soft_mask(threshold):
    form = SoftMask(torch.zeros(1), TEMPERATURE)
    form.threshold.fill_(threshold)
    return form


def test_the_soft_mask_by_hand():
    weight = torch.tensor([[2.0, -1.0]])
    # sigmoid(4 - 2.25) and sigmoid(1 - 2.25)
    product = soft_mask(1.5)(weight, torch.tensor([[True, False]]))
    assert product.tolist()[0] == pytest.approx([2 * 0.851953, -0.222700], rel=1e-5)


def test_the_gradient_is_that_of_the_product():
    form, mask = soft_mask(1.5), torch.tensor([True, False, True])
    weight = torch.tensor([2.0, -1.0, 1.6], requires_grad=True)
    form(weight, mask).sum().backward()
    plain = weight.detach().clone().requires_grad_()
    (torch.sigmoid(plain**2 - 2.25) * plain).sum().backward()
    torch.testing.assert_close(weight.grad, plain.grad)


@pytest.mark.parametrize("threshold", [0.0, 1e-30, 1e30])
def test_no_threshold_makes_a_gradient_that_is_no_number(threshold):
    weight = torch.tensor([0.0, 1.0, -1e4], requires_grad=True)
    soft_mask(threshold)(weight, torch.tensor([True, False, True])).sum().backward()
    assert weight.grad.isfinite().all()
    if threshold == 0:
        assert weight.grad.tolist() == [1.0, 0.0, 1.0]  # the hard mask


def test_evaluation_has_the_hard_mask():
    pruner = prepared()
    train(pruner, 8, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    target = pruner.targets[0]
    assert target.module.weight[~target.masked.mask].all()
    pruner.model.eval()
    assert torch.equal(target.module.weight, target.weight * target.masked.mask)


def test_the_mask_is_hard_from_the_final_density_on():
    pruner = prepared()
    train(pruner, 14, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    for target in pruner.targets:
        assert torch.equal(target.module.weight, target.weight * target.masked.mask)


def test_each_matrix_has_its_threshold():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0]]))
        model[1].weight.copy_(torch.tensor([[-30.0, 10.0]]))
    config = PruningConfig("pdp", density=0.5, initial_density=0.5, warmup=0, targets=("0", "1"))
    pruner = prepare(model, config, 20)
    assert [target.masked.form.threshold.item() for target in pruner.targets] == [1.5, 20.0]


def test_the_density_falls_linearly():
    pruner = prepared()
    densities = train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    # t_i = 2, T - t_f = 14: after 8 steps half of 75 % is gone
    assert (densities[1], densities[7], densities[13], densities[-1]) == (1.0, 0.625, 0.25, 0.25)


def test_a_run_ends_as_an_ordinary_model():
    pruner, keys = prepared(), set(blocks().state_dict())
    train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    tokens = torch.arange(7).view(1, 7)
    during = pruner.model(tokens)
    assert set(finalize(pruner.model).state_dict()) == keys
    assert torch.equal(pruner.model(tokens), during)


@pytest.mark.parametrize("steps", [9, 15])
def test_a_resume_is_bit_for_bit(steps):
    assert_resumes(prepared, steps)
