"""Powerpropagation: the literal values of its scaled step, and what a run does with it."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.pruning.methods.powerprop import ScaledSteps


def prepared(**options):
    return prepare(blocks(), PruningConfig("powerprop", density=0.25, warmup=2, options=options), TOTAL)


def row(weights, power=2.0):
    """A pruner of one row of weights."""
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weights]))
    return prepare(model, PruningConfig("powerprop", targets="0", options={"power": power}), TOTAL)


def test_a_scaled_step_by_hand():
    pruner = row([1.0, 3.0])
    target, optimizer = pruner.targets[0], pruner.optimizer(torch.optim.SGD, 0.1)
    target.weight.grad = torch.ones(1, 2)
    optimizer.step()
    # s = (1, 3)/2
    assert target.weight.tolist()[0] == pytest.approx([0.95, 2.85])


def scales(weights, power=2.0):
    target = row(weights).targets[0]
    return ScaledSteps(power).scales([target], [target.weight.detach()])[0].tolist()[0]


def test_the_scale_follows_from_the_papers_map():
    # W = phi·|phi| at phi = -2: dW/dphi = 4, so dL/dphi = 4g, and W = -4 moves by -lr·16g: alpha²·|W|
    phi = torch.tensor(-2.0, requires_grad=True)
    weight = phi * phi.abs()
    weight.backward()
    assert (weight.item(), phi.grad.item(), phi.grad.item() ** 2) == (-4.0, 4.0, 2**2 * 4.0)
    # hence weights of 4 and 1 move as 4 to 1; with alpha 1.5 as 4^(2/3) to 1
    assert scales([-4.0, 1.0]) == [pytest.approx(1.6), pytest.approx(0.4)]
    larger, smaller = scales([-4.0, 1.0], 1.5)
    assert larger / smaller == pytest.approx(4 ** (2 / 3))


def test_the_scale_is_clipped_and_zeros_stand_still():
    # mean|W| = 1: 0.001 is raised to 0.05, 9.999 lowered to 5
    assert scales([0.001, 9.999, *[0.0] * 8]) == [pytest.approx(0.05), 5.0, *[0.0] * 8]


def test_a_power_of_1_is_magnitude_pruning():
    plain = prepare(blocks(), PruningConfig("magnitude", density=0.25, warmup=2), TOTAL)
    same = prepared(power=1)
    for pruner in (plain, same):
        train(pruner, TOTAL)  # over the parameter groups
    for ours, theirs in zip(same.targets, plain.targets, strict=True):
        assert torch.equal(ours.weight, theirs.weight)


def test_other_parameters_take_their_steps():
    one, other = prepared(power=1), prepared(power=3)
    for pruner in (one, other):
        train(pruner, 1, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    for key, tensor in one.model.state_dict().items():
        changed = key.endswith("original")
        assert torch.equal(other.model.state_dict()[key], tensor) != changed, key


def test_a_run_ends_at_its_density_and_is_an_ordinary_model():
    pruner, keys = prepared(), set(blocks().state_dict())
    assert train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))[-1] == 0.25
    assert set(finalize(pruner.model).state_dict()) == keys


def test_a_resume_is_bit_for_bit():
    assert_resumes(prepared, 9)


def test_groups_alone_are_refused():
    with pytest.raises(FinepruneError, match=r"'powerprop': it changes the steps .*pruner\.attach\("):
        prepared().parameter_groups(1e-3)


def test_an_optimizer_that_was_not_attached_is_told():
    pruner = prepared()
    with pytest.raises(FinepruneError, match="optimizer, which was not attached"):
        train(pruner, 1, optimizer=torch.optim.SGD(pruner.model.parameters(), 0.1))


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_optimizers_that_mix_weights_are_refused(kind):
    pruner = prepared()
    weights = [entry for entry in pruner.model.parameters() if entry.requires_grad]
    with pytest.raises(FinepruneError, match=rf"optimizer={kind.__name__}: powerprop scales the step"):
        pruner.attach(kind(weights))
