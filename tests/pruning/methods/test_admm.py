"""ADMM: the literal values of its steps, and what a run does with it."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.pruning.methods.admm import Options, Projection, pull
from fineprune.pruning.schedule import Schedule


def prepared(**options):
    config = PruningConfig("admm", density=0.25, warmup=2, cooldown=5, options={"interval": 4, **options})
    return prepare(blocks(), config, TOTAL)


def pair():
    """A pruner of the matrix (3, 1) at a density of one weight, and its rule."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 1.0]]))
    return prepare(model, PruningConfig("admm", density=0.5, targets="0"), 20).targets[0]


def values(target):
    found = target.masked.statistics
    return target.weight.tolist()[0], found["sparse"].tolist()[0], found["dual"].tolist()[0]


def test_pull_and_projection_by_hand():
    target = pair()
    rule = Projection(Options(objective_aware=False), Schedule(20, 0, 5), 0.5)
    optimizer = torch.optim.SGD([target.weight], 1.0)

    def step():
        target.weight.grad = torch.zeros(1, 2)
        pull(target, 0.5)
        optimizer.step()

    with torch.no_grad():
        rule.project([target], first=True)
        assert values(target) == ([3, 1], [3, 0], [0, 0])
        step()
        rule.project([target], first=False)
        assert values(target) == ([3, 0.5], [3, 0], [0, 0.5])
        step()
        assert values(target)[0] == [3, 0]
        step()
        assert values(target)[0] == [3, -0.25]


def test_the_curvature_decides_what_the_copy_keeps():
    target = pair()
    with torch.no_grad():
        target.scores.copy_(torch.tensor([[0.01, 1.0]]))  # 0.01·9 < 1·1
        Projection(Options(), Schedule(20, 0, 5), 0.5).project([target], first=True)
    assert values(target)[1] == [0, 1]


def test_the_pull_is_relative_to_the_gradient():
    target = pair()
    rule = Projection(Options(strength=2.0, objective_aware=False), Schedule(20, 0, 5), 0.5)
    with torch.no_grad():
        rule.project([target], first=True)
    target.weight.grad = torch.tensor([[3.0, 4.0]])
    rule.observe([target], 15, lambda _: 0.1)  # no projection: 14 is not a multiple of 32
    # RMS(g)/RMS(W - z) = 5/1, and the ramp after 14 of 15 steps is 1 - 1/15³
    assert target.weight.grad.tolist()[0] == [3.0, pytest.approx(4 + 2 * 5 * (1 - 1 / 15**3))]


def test_a_run_is_dense_until_the_cool_down_and_ends_at_its_density():
    pruner, keys = prepared(), set(blocks().state_dict())
    densities = train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    assert densities == [1.0] * 14 + [0.25] * 6
    assert set(finalize(pruner.model).state_dict()) == keys


def test_the_cut_takes_the_support_of_the_copy():
    pruner = prepared()
    train(pruner, 15, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    for target in pruner.targets:
        assert torch.equal(target.masked.mask, target.masked.statistics["sparse"] != 0)


def test_the_pull_makes_the_cut_smaller():
    def lost(strength):
        pruner = prepared(strength=strength)
        train(pruner, 14, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
        gaps = [target.weight.detach() - target.masked.statistics["sparse"] for target in pruner.targets]
        return float(sum(gap.square().sum() for gap in gaps))

    assert lost(3.0) < 0.9 * lost(1e-6)


@pytest.mark.parametrize("steps", [5, 8, 17])
def test_a_resume_is_bit_for_bit(steps):
    assert_resumes(prepared, steps)


def test_a_first_cut_is_refused():
    with pytest.raises(
        FinepruneError, match=r"initial_density=0\.5: admm trains dense weights and cuts once"
    ):
        prepare(blocks(), PruningConfig("admm", initial_density=0.5), TOTAL)
