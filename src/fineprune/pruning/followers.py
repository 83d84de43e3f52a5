"""The weights of other matrices that belong to the units of a grid: they follow its mask at the end."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fineprune.pruning.anatomy import Lines
from fineprune.pruning.units import Grid


class Follower(NamedTuple):
    """Lines of a matrix that belong to units which are masked elsewhere."""

    module: nn.Module
    lines: Lines

    @property
    def weight(self) -> nn.Parameter:
        """The weight of the whole matrix, without the mask that an inner level may have put on it."""
        if parametrize.is_parametrized(self.module, "weight"):
            return self.module.get_parameter("parametrizations.weight.original")
        return self.module.get_parameter("weight")

    def places(self, units: Tensor) -> Tensor:
        """Return where the lines of some units are along their axis.

        Args:
            units: Bool, an entry a unit.
        """
        device = self.weight.device
        flags = units.to(device)[torch.from_numpy(self.lines.units).to(device)]
        return torch.from_numpy(self.lines.positions).to(device)[flags]

    @torch.no_grad()
    def zero(self, dead: Tensor) -> None:
        """Set the lines of dead units to 0; `dead` is bool, an entry a unit."""
        self.weight.index_fill_(self.lines.axis, self.places(dead), 0.0)


def followers_of(model: nn.Module, grid: Grid) -> tuple[Follower, ...]:
    """Return the followers of a grid in the model that it was made for."""
    return tuple(Follower(model.get_submodule(lines.matrix), lines) for lines in grid.followers)
