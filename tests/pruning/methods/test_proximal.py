"""Proximal pruning: the literal values of its shrinkage, and what a run does with it."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.pruning.methods.proximal import Reweighted


def prepared(**options):
    return prepare(blocks(), PruningConfig("proximal", density=0.25, warmup=2, options=options), TOTAL)


def test_the_weight_by_hand():
    # epsilon 1: alpha = (1/4, 1/2)
    form = Reweighted(torch.zeros(1))
    form.threshold.fill_(1.0)
    assert form(torch.tensor([3.0, -1.0]), torch.tensor([True, True])).tolist() == [2.75, -0.5]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # epsilon = 0.5·mean|W| = 1; t half way between 1·2 and 2·3 is 4, 3 - 4/4 = 2 and 2 - 4/3 = 2/3
        ({"epsilon": 0.5}, [2.0, 0.0, -2 / 3]),
        ({"reweight": False}, [1.5, 0.0, -0.5]),  # t = 1.5
    ],
)
def test_the_density_sets_the_threshold(options, expected):
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 1.0, -2.0]]))
    config = PruningConfig(
        "proximal", density=0.6, initial_density=0.6, warmup=0, targets="0", options=options
    )
    prepare(model, config, 20)
    assert model[0].weight.tolist()[0] == pytest.approx(expected)


def test_large_weights_hardly_shrink():
    pruner = prepared()
    train(pruner, 8, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    weights = torch.cat([target.weight.detach().abs().flatten() for target in pruner.targets])
    shrunk = torch.cat([target.module.weight.detach().abs().flatten() for target in pruner.targets])
    lost = (weights - shrunk)[weights.topk(64).indices]  # by falling size; after 8 steps 65 of 192 stay
    assert (lost.diff() > 0).all()


def test_a_run_trains_cut_weights_then_fixes_the_masks():
    pruner, keys = prepared(), set(blocks().state_dict())
    optimizer = pruner.optimizer(torch.optim.SGD, 1e-2)
    train(pruner, 8, optimizer=optimizer)
    target = pruner.targets[0]
    cut = ~target.masked.mask.clone()
    before = target.weight.detach()[cut]
    train(pruner, 1, optimizer=optimizer)
    assert (target.weight.detach()[cut] != before).all()
    train(pruner, 5, optimizer=optimizer)
    before = target.masked.mask.clone()
    assert train(pruner, TOTAL - 14, optimizer=optimizer)[-1] == 0.25
    assert torch.equal(target.masked.mask, before)
    assert set(finalize(pruner.model).state_dict()) == keys


@pytest.mark.parametrize("steps", [9, 14])
def test_a_resume_is_bit_for_bit(steps):
    assert_resumes(prepared, steps)


def test_weight_decay_on_pruned_weights_is_refused():
    message = r"weight_decay=0\.01: proximal already pulls the weights"
    with pytest.raises(FinepruneError, match=message):
        prepared().parameter_groups(1e-3, weight_decay=0.01)
    with pytest.raises(FinepruneError, match=message):
        prepared().optimizer(torch.optim.AdamW, 1e-3, weight_decay=0.01)
    pruner = prepared()
    with pytest.raises(FinepruneError, match=message):
        pruner.attach(torch.optim.AdamW(pruner.model.parameters()))  # its default is 0.01
    head = {"params": pruner.model.head.parameters(), "weight_decay": 0.01}
    rest = [target.weight for target in pruner.targets]
    pruner.attach(torch.optim.AdamW([head, {"params": rest, "weight_decay": 0.0}]))


def test_frozen_weights_are_refused():
    model = blocks()
    model.blocks[0][0].weight.requires_grad_(False)
    with pytest.raises(FinepruneError, match=r"blocks\.0\.0: is frozen, and proximal changes the values"):
        prepare(model, PruningConfig("proximal"), TOTAL)
