"""Grids of units, and methods that prune by them."""

import pytest
import torch
from torch import nn

from fineprune import FinepruneError, PruningConfig
from fineprune.pruning import units
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.score_rules import Learned
from fineprune.pruning.target import size_of

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


# structures.md 2: rows are outputs and columns inputs, also of Conv1D, which stores inputs x outputs.
def test_kinds_of_a_matrix_that_is_stored_transposed():
    weight = torch.zeros(6, 4)
    row, column = units.rows("w", weight, True), units.columns("w", weight, True)
    block = units.blocks("w", weight, 2, 1, True)
    assert [(grid.kind, grid.shape, grid.cost) for grid in (row, column, block)] == [
        ("row", (4,), 6),
        ("column", (6,), 4),
        ("2 x 1 block", (6, 2), 2),
    ]
    first = torch.tensor([1, 0, 0, 0, 0, 0])
    assert row.expansion.expand(first[:4]).T.tolist() == [[1] * 6, *[[0] * 6] * 3]
    assert column.expansion.expand(first).T.tolist() == [[1, 0, 0, 0, 0, 0]] * 4
    grid = torch.zeros(6, 2)
    grid[3, 1] = 1
    assert block.expansion.expand(grid).T.tolist() == [
        *[[0.0] * 6] * 2,
        *[[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]] * 2,
    ]
    assert block.expansion.reduce(torch.ones(6, 4)).tolist() == [[2.0, 2.0]] * 6
    with pytest.raises(
        FinepruneError, match="w: 3 x 1 blocks do not divide 4 x 6; block rows that divide 4: 1"
    ):
        units.blocks("w", weight, 3, 1, True)


def test_blocks_that_do_not_divide():
    with pytest.raises(
        FinepruneError, match=r"w: 4 x 1 blocks do not divide 6 x 6; block rows that divide 6: 1, 2, 3, 6"
    ):
        units.blocks("w", torch.zeros(6, 6), 4, 1)
    with pytest.raises(FinepruneError, match="w: its weight has 3 dimensions"):
        units.rows("w", torch.zeros(2, 3, 1))


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


def test_the_size_of_a_unit_is_a_root_mean_square():
    assert size_of(torch.tensor([[3.0, 4.0], [5.0, 0.0]]), units.rows("w", torch.zeros(2, 2))).tolist() == (
        pytest.approx([3.5355, 3.5355], abs=1e-4)
    )
    grid = units.blocks("w", torch.tensor(W), 2, 2)
    started = Learned(PruningConfig()).start(size_of(torch.tensor(W), grid))
    sizes = torch.tensor([[30.0, 0.3]]).div(4).sqrt()
    assert torch.allclose(started, sizes / sizes.mean())
