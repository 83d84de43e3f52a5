"""How an entry for each unit of a matrix becomes an entry for each weight, and back by sums.

A grid holds one entry a unit, a matrix one a weight. `expand` copies the entry of a unit to all of its
weights; `reduce` is its adjoint, the sum over each unit, so that sum(expand(m) * A) = sum(m * reduce(A)) for
all m and A.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Expansion(ABC):
    """The map between a grid and a matrix."""

    @abstractmethod
    def expand(self, units: Tensor) -> Tensor:
        """Return an entry for each weight, of the matrix's shape, from one for each unit."""

    @abstractmethod
    def reduce(self, weights: Tensor) -> Tensor:
        """Return the sum over the weights of each unit, of the grid's shape."""


@dataclass(frozen=True)
class Identity(Expansion):
    """Each weight is a unit of its own."""

    def expand(self, units: Tensor) -> Tensor:
        return units

    def reduce(self, weights: Tensor) -> Tensor:
        return weights


@dataclass(frozen=True)
class Blocks(Expansion):
    """Units are blocks of `rows` x `columns` weights of the matrix as it is stored."""

    rows: int
    columns: int

    def expand(self, units: Tensor) -> Tensor:
        down, across = units.shape
        wide = units[:, None, :, None].expand(down, self.rows, across, self.columns)
        return wide.reshape(down * self.rows, across * self.columns)

    def reduce(self, weights: Tensor) -> Tensor:
        sums: Tensor = weights.unflatten(1, (-1, self.columns)).unflatten(0, (-1, self.rows)).sum((1, 3))
        return sums


class Lines(Expansion):
    """Units are sets of whole rows (`axis` 0) or columns (`axis` 1); the grid has one dimension.

    Args:
        axis: The axis along which the lines are counted.
        unit_of: For each line the number of its unit, -1 where it is of none. A line of none is kept:
            `expand` gives it 1, and `reduce` leaves it out.
        size: The length of a line, the matrix's size along the other axis.
    """

    def __init__(self, axis: int, unit_of: Sequence[int], size: int) -> None:
        if axis not in (0, 1):
            raise ValueError(f"axis={axis}: must be 0 (rows) or 1 (columns)")
        self.axis, self.size = axis, size
        self.unit_of = torch.tensor(unit_of, dtype=torch.int64)
        self.units = int(self.unit_of.max()) + 1

    def lines(self, units: Tensor) -> Tensor:
        """Return an entry for each line from one for each unit; 1 for a line of none."""
        unit_of = self.unit_of.to(units.device)
        ones = torch.ones((), dtype=units.dtype, device=units.device)
        return torch.where(unit_of < 0, ones, units[unit_of])

    def expand(self, units: Tensor) -> Tensor:
        lines = self.lines(units).unsqueeze(1 - self.axis)
        return lines.expand((-1, self.size) if self.axis == 0 else (self.size, -1)).contiguous()

    def reduce(self, weights: Tensor) -> Tensor:
        sums = weights.sum(1 - self.axis)
        members = self.unit_of >= 0
        grid = torch.zeros(self.units, dtype=sums.dtype, device=sums.device)
        return grid.index_add_(0, self.unit_of[members].to(sums.device), sums[members.to(sums.device)])
