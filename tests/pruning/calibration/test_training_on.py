"""A training that begins with a model that `calibrate` cut."""

import pytest
import torch
from pruning.blocks import BLOCK_WEIGHTS, TOTAL, blocks, train
from pruning.calibration.test_calibrate import tokens

from fineprune import PruningConfig, calibrate, prepare
from fineprune.config import METHODS


def cut():
    """Half of the weights, and where they are."""
    model = blocks()
    calibrate(model, [tokens()], density=0.5)
    return model, [block[place].weight != 0 for block in model.blocks for place in (0, 2)]


AT_ONCE = [
    name
    for name, traits in METHODS.items()
    if traits.mask_interval == 1 and traits.trains_weights and name != "admm"
]


@pytest.mark.parametrize("method", AT_ONCE)
def test_the_first_masks_are_the_weights_that_remain(method):
    """With initial_density at the density of the cut, and no warm-up."""
    model, remaining = cut()
    holds = METHODS[method].holds_zeros
    settings = {} if holds else {"density": 0.25, "initial_density": 0.5, "warmup": 0}
    pruner = prepare(model, PruningConfig(method, **settings), TOTAL)
    for target, there in zip(pruner.targets, remaining, strict=True):
        assert torch.equal(target.masked.kept(), there)
    densities = train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, lr=1e-2))
    assert densities[-1] == (0.5 if holds else 0.25)
    assert max(densities) <= 0.5


@pytest.mark.parametrize("method", [name for name, traits in METHODS.items() if traits.mask_interval > 1])
def test_methods_that_rank_what_they_observe_need_a_window_first(method):
    """Cut weights are 0, and so is their sensitivity: they go first."""
    model, remaining = cut()
    window = METHODS[method].mask_interval
    config = PruningConfig(method, density=0.5, initial_density=0.5, warmup=window, cooldown=window)
    pruner = prepare(model, config, 2 * window + 1)
    train(pruner, 2 * window + 1, optimizer=pruner.optimizer(torch.optim.SGD, lr=1e-6))
    again = [target.masked.kept() for target in pruner.targets]
    shared = sum(int((mask & there).sum()) for mask, there in zip(again, remaining, strict=True))
    assert shared > 0.9 * 0.5 * BLOCK_WEIGHTS
