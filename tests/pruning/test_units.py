"""Grids of units, and methods that prune by them."""

from functools import partial

import pytest
import torch
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize
from fineprune.pruning import units
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.score_rules import Learned, WeightSize

W = [[1.0, 2.0, 0.1, 0.2], [3.0, 4.0, 0.3, 0.4]]


def test_kinds():
    weight = torch.zeros(4, 6)
    found = [
        units.elements("w", weight),
        units.blocks("w", weight, 2, 3),
        units.rows("w", weight),
        units.columns("w", weight),
    ]
    assert [(grid.kind, grid.shape, grid.cost) for grid in found] == [
        ("element", (4, 6), 1),
        ("2 x 3 block", (2, 2), 6),
        ("row", (4,), 6),
        ("column", (6,), 4),
    ]
    for grid in found[1:]:
        assert grid.expansion.expand(torch.ones(grid.shape)).shape == weight.shape


def test_blocks_that_do_not_divide():
    with pytest.raises(
        FinepruneError, match=r"w: 4 x 1 blocks do not divide 6 x 6; block rows that divide 6: 1, 2, 3, 6"
    ):
        units.blocks("w", torch.zeros(6, 6), 4, 1)
    with pytest.raises(FinepruneError, match="w: its weight has 3 dimensions"):
        units.rows("w", torch.zeros(2, 3, 1))


def test_units_that_do_not_fit_leave_the_model_as_it_was(prepare_with):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, out)) for out in (8, 6)))
    grid = partial(units.blocks, rows=4, columns=1)
    with pytest.raises(FinepruneError, match=r"1\.1: 4 x 1 blocks do not divide 6 x 8"):
        prepare_with(method_on(grid, "size"), model, PruningConfig("magnitude", targets="*"), 8)
    assert not any("parametrizations" in name for name, _ in model.named_modules())


def test_scores_of_blocks_get_the_sum_and_the_mask_its_expansion():
    weight = nn.Parameter(torch.tensor(W))
    grid = units.blocks("w", weight, 2, 2)
    masked = MaskedWeight(weight, torch.zeros(grid.shape), grid)
    masked.units.copy_(torch.tensor([[True, False]]))
    masked.spread()
    product = masked(weight)
    assert product.tolist() == [[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]]
    product.backward(torch.ones_like(product))
    assert masked.scores.grad.flatten().tolist() == pytest.approx(
        [10.0, 1.0]
    )  # masked units' scores get theirs
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]] * 2


def test_the_size_of_a_block_is_a_root_mean_square():
    grid = units.blocks("w", torch.tensor(W), 2, 2)
    started = Learned(PruningConfig()).start(torch.tensor(W), grid)
    sizes = torch.tensor([[30.0, 0.3]]).div(4).sqrt()
    assert torch.allclose(started, sizes / sizes.mean())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def method_on(grid, rule):
    class OnGrid(Method):
        def parts(self):
            return Parts(rule=WeightSize() if rule == "size" else Learned(self.config), units=grid)

    return OnGrid


@pytest.mark.parametrize("rule", ["size", "learned"])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("grid", [partial(units.blocks, rows=4, columns=1), units.rows, units.columns])
def test_a_run_on_units(grid, scope, rule, prepare_with):
    config = PruningConfig(
        "movement" if rule == "learned" else "magnitude", density=0.25, scope=scope, warmup=0
    )
    pruner = prepare_with(method_on(grid, rule), Net(), config, 8)
    optimizer = pruner.optimizer(torch.optim.SGD, 1e-2)
    for _ in range(8):
        pruner.model(torch.ones(3, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    assert pruner.density == 0.25
    for target in pruner.targets:
        shown = target.masked.grid.expansion.reduce(target.masked.mask.float())
        assert set(shown.unique().tolist()) <= {0.0, float(target.masked.grid.cost)}  # whole units
    masks = [target.masked.mask.clone() for target in pruner.targets]
    finalize(pruner.model)
    for mask, target in zip(masks, pruner.targets, strict=True):
        assert torch.equal(target.module.weight != 0, mask)
