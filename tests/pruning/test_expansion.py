"""Grid to matrix and back: literal cases, and that one is the adjoint of the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.pruning.expansion import Blocks, Identity, Lines


def test_blocks_expand():
    # W 4 x 6, blocks (2, 3): rows 0-1 keep columns 0-2, rows 2-3 keep 3-5; 12 of 24
    mask = Blocks(2, 3).expand(torch.tensor([[True, False], [False, True]]))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0, 0]] * 2 + [[0, 0, 0, 1, 1, 1]] * 2


def test_a_block_sums_the_movement_of_its_weights():
    # W = [[1, 2], [3, 4]], dL/dW' = [[1, -1], [2, 0.5]]: 1 - 2 + 6 + 2 = 7
    moved = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * torch.tensor([[1.0, -1.0], [2.0, 0.5]])
    assert Blocks(2, 2).reduce(moved).tolist() == [[7.0]]


def test_columns_sum_down():
    # FFN-out W = [[1, 2], [0, -1], [3, 1]], dL/dW' = [[2, 1], [1, 1], [-1, 0]]: [2 + 0 - 3, 2 - 1 + 0]
    moved = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]) * torch.tensor(
        [[2.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]
    )
    assert Lines(1, [0, 1], 3).reduce(moved).tolist() == [-1.0, 1.0]


def test_lines_of_no_unit_are_kept_and_not_counted():
    lines = Lines(0, [0, -1, 0, 1], 2)
    assert lines.expand(torch.tensor([False, True])).int().tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert lines.reduce(torch.arange(8.0).view(4, 2)).tolist() == [0 + 1 + 4 + 5, 6 + 7]


def test_an_axis_that_is_none():
    with pytest.raises(ValueError, match="axis=2: must be 0"):
        Lines(2, [0], 1)


@st.composite
def maps(draw):
    """An expansion, the shape of its grid, and that of its matrix."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    down, across = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["identity", "blocks", "lines"]))
    if kind == "identity":
        return Identity(), (rows, columns), (rows, columns)
    if kind == "blocks":
        return Blocks(rows, columns), (down, across), (down * rows, across * columns)
    unit_of = draw(st.lists(st.integers(-1, 2), min_size=1, max_size=6).filter(lambda units: max(units) >= 0))
    axis = draw(st.sampled_from([0, 1]))
    shape = (len(unit_of), columns) if axis == 0 else (columns, len(unit_of))
    return Lines(axis, unit_of, columns), (max(unit_of) + 1,), shape


@settings(deadline=None)
@given(maps(), st.integers(0, 2**31))
def test_reduce_is_the_adjoint_of_expand(case, seed):
    expansion, grid, shape = case
    generator = torch.Generator().manual_seed(seed)
    units = torch.randn(grid, generator=generator, dtype=torch.float64)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    expanded = expansion.expand(units)
    if isinstance(expansion, Lines):  # lines of no unit are 1 whatever the units are
        expanded = expanded - expansion.expand(torch.zeros_like(units))
    assert expanded.shape == weights.shape
    assert (expanded * weights).sum().item() == pytest.approx(
        (units * expansion.reduce(weights)).sum().item()
    )
