"""One pruned weight of a prepared model, and the weights of other matrices that belong to its units."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.pruning.followers import Follower
from fineprune.pruning.latency import share_of_time
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.units import Grid
from fineprune.structure import TIED


def size_of(weight: Tensor, grid: Grid, followers: tuple[Follower, ...] = ()) -> Tensor:
    """Return |W| of elements and the root mean square of larger units' weights, float32 of the grid's shape.

    It is neither a sum nor a norm, so that units of different kinds compare.
    """
    values = weight.detach().float()
    if grid.is_elements:
        return values.abs()
    squares = grid.expansion.reduce(values.square())
    for follower in followers:
        lines = follower.lines
        sums = follower.weight.detach().float().square().sum(1 - lines.axis)
        places = torch.from_numpy(lines.positions).to(sums.device)
        squares.index_add_(0, torch.from_numpy(lines.units).to(sums.device), sums[places])
    return squares.div(grid.weights).sqrt()


def folded(module: nn.Module) -> Tensor:
    """Return the weight of a prepared layer made permanent; of a sharded one, the rows of this process."""
    chain: Any = module.get_submodule("parametrizations.weight")
    weight: Tensor = chain.original
    for masked in chain:  # an outer level has a gate of its own
        weight = masked.fold(weight)
    return weight


@dataclass
class Target:
    """A pruned weight: its dotted name, the module that holds it, its mask, and what follows the mask."""

    name: str
    module: nn.Module
    masked: MaskedWeight

    @property
    def followers(self) -> tuple[Follower, ...]:
        """The lines of other matrices that belong to the units."""
        return self.masked.followers

    @property
    def weight(self) -> nn.Parameter:
        """W itself, unmasked."""
        original: nn.Parameter = self.module.parametrizations.weight.original  # type: ignore[union-attr, assignment]
        return original

    @property
    def scores(self) -> Tensor:
        """The scores S, an entry a unit."""
        assert self.masked.scores is not None
        return self.masked.scores

    @property
    def gate(self) -> Any:
        """The gate of a method that has one."""
        assert self.masked.gate is not None
        return self.masked.gate

    def fold(self) -> Tensor:
        """Return the weight made permanent, by the masks of all levels."""
        return folded(self.module)

    def size(self) -> Tensor:
        """Return the size of the units, as magnitude pruning ranks them."""
        return size_of(self.weight, self.masked.grid, self.followers)


def heads_with_values(targets: Iterable[Target]) -> tuple[int, int] | None:
    """Return how many heads keep a value dim, and of how many; None where no value dims are pruned."""
    shares = [values_left(target) for target in targets if target.masked.grid.kind == "value_dim"]
    return (sum(int((share > 0).sum()) for share in shares), sum(map(len, shares))) if shares else None


def values_left(target: Target) -> Tensor:
    """Return the share of the value dims that each head keeps, or each group of heads that shares V."""
    masked = target.masked
    return masked.kept_units().view(-1, masked.grid.head_size).float().mean(dim=1)


def left_of(outer: Sequence[Target], targets: Sequence[Target]) -> dict[str, Any]:
    """Return what the masks keep, as `Pruner.left` says."""
    scored = [*outer, *targets]
    grids = [target.masked.grid for target in scored]
    weights = [target.masked.kept_weights() for target in scored]
    kept = [count // grid.weights for count, grid in zip(weights, grids, strict=True)]
    units = [math.prod(grid.shape) for grid in grids]
    # The weights of an outer level are those of the inner one; its attention products are its own.
    inner = range(len(outer), len(grids))
    spent, total = (
        sum(counts[i] * grids[i].weights for i in inner)
        + sum(count * grid.product for count, grid in zip(counts, grids, strict=True))
        for counts in (kept, units)
    )
    share = sum(weights[i] for i in inner) / sum(target.masked.total_weights for target in targets)
    found: dict[str, Any] = {"parameters": share, "flops": spent / total}
    if grids[0].times:
        found["latency"] = share_of_time(grids, kept)
    for kind in TIED:
        of_kind = [index for index, grid in enumerate(grids) if grid.kind == kind]
        if of_kind:
            found[f"{kind}s"] = (sum(kept[i] for i in of_kind), sum(units[i] for i in of_kind))
    if heads := heads_with_values(scored):
        found["heads"] = heads
    return found
