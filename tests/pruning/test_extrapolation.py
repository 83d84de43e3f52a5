"""Gradients ahead of the weights: the literal step, and that nothing else sees where they were taken."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks
from torch import nn

from fineprune import FinepruneError, PruningConfig, prepare
from fineprune.pruning.extrapolation import Extrapolation


def pair(ahead=0.1, rate=0.5):
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], rate)
    return weight, optimizer, Extrapolation(optimizer, ahead)


def step(weight, optimizer, extrapolation):
    optimizer.zero_grad()
    with extrapolation:
        (weight.square() / 2).backward()
    optimizer.step()


def test_a_step_by_hand():
    weight, optimizer, extrapolation = pair()
    extrapolation.load_state_dict({"0": torch.tensor(2.0)})
    step(weight, optimizer, extrapolation)
    assert weight.item() == pytest.approx(0.6)  # the gradient at 1 - 0.1·2 is 0.8
    assert float(extrapolation.state_dict()["0"]) == pytest.approx(0.8)


def test_the_first_step_and_the_distance_of_the_learning_rate():
    weight, optimizer, extrapolation = pair(ahead=None)
    step(weight, optimizer, extrapolation)
    assert weight.item() == 0.5  # no gradient yet
    step(weight, optimizer, extrapolation)
    assert weight.item() == 0.5  # 0.5 - 0.5·1 = 0 has no slope


def test_masks_and_weights_are_those_of_before_after_the_block():
    pruner = prepare(blocks(), PruningConfig("movement", density=0.5), TOTAL)
    optimizer = pruner.optimizer(torch.optim.SGD, 0.5)
    extrapolation, tokens = Extrapolation(optimizer, 0.3), torch.randint(0, 7, (4, 5))
    moved = []
    for _ in range(3):
        optimizer.zero_grad()
        before = [entry.detach().clone() for entry in pruner.model.parameters()]
        with extrapolation:
            inside = [not torch.equal(a, b) for a, b in zip(before, pruner.model.parameters(), strict=True)]
            pruner.model(tokens).square().mean().backward()
        assert all(torch.equal(a, b) for a, b in zip(before, pruner.model.parameters(), strict=True))
        moved.append(any(inside))
        optimizer.step()
        pruner.step()
    assert moved == [False, True, True]


def test_a_saved_state_goes_on():
    one, two = pair(), pair()
    for _ in range(2):
        step(*one)
    with torch.no_grad():
        two[0].copy_(one[0])
    two[2].load_state_dict(one[2].state_dict())
    step(*one)
    step(*two)
    assert one[0].item() == two[0].item()


def test_refusals():
    weight, optimizer, extrapolation = pair()
    for wrong in (-1, True, "lr", float("inf")):
        with pytest.raises(FinepruneError, match=r"ahead=.*: must be a number, 0 or more"):
            Extrapolation(optimizer, wrong)
    with pytest.raises(FinepruneError, match="optimizer=list"):
        Extrapolation([weight])
    with pytest.raises(FinepruneError, match="gradients are of another optimizer"):
        extrapolation.load_state_dict({"0": torch.zeros(2)})
    step(weight, optimizer, extrapolation)
    with extrapolation, pytest.raises(FinepruneError, match=r"step\(\) inside the block"):
        optimizer.step()
