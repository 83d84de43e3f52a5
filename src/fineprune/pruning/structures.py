"""Which matrices a structure prunes, and how the units lie in each."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning import units
from fineprune.pruning.anatomy import Attention, FeedForward, Kind, Lines, place_of
from fineprune.pruning.expansion import Lines as LineExpansion
from fineprune.pruning.latency import LatencyTable, timed
from fineprune.pruning.layout import layout_of
from fineprune.pruning.targets import is_transposed
from fineprune.pruning.units import Grid
from fineprune.structure import TIED, Level, Unit

_KINDS: dict[str, tuple[Kind, ...]] = {
    "attention": ("Q", "K", "V", "QKV", "O"),
    "feed_forward": ("FFN in", "FFN out"),
}
_DIMS: dict[Unit, tuple[Kind, ...]] = {"query_dim": ("Q", "K"), "value_dim": ("V", "O")}
"""The matrices of a unit inside of heads; the last one gets the mask.

A row of K that is masked leaves its bias b. The product q·b of a query is the same with every key, and no
softmax sees it, so that neither the bias nor Q needs a mask.
"""


def grids_of(
    model: nn.Module, matrices: Mapping[str, nn.Module], config: PruningConfig
) -> list[dict[str, Grid]]:
    """Return, of each level, the grid of each matrix that gets a mask, by dotted name; the outer level first.

    The names are in the order of `matrices`.

    Args:
        model: The model.
        matrices: The linear layers that `targets` and `exclude` chose. Those that follow another's mask, and
            those of a part that stays whole, get none.
        config: The structure and the budget.

    Raises:
        FinepruneError: Units do not fit their matrix, a head or neuron cannot be told or has only some of its
            matrices among those chosen, the density keeps less than one unit, or an outer level leaves fewer
            weights than it asks for.
    """
    levels = config.levels
    found = [_grids(model, matrices, config, level) for level in levels]
    for grids, level in zip(found, levels, strict=True):
        _check_density(grids, config, level)
    if len(found) > 1:
        _check_levels(found, config)
    return found


def _grids(
    model: nn.Module, matrices: Mapping[str, nn.Module], config: PruningConfig, level: Level
) -> dict[str, Grid]:
    """Return the grids of one level."""
    grids: dict[str, Grid] = {}
    for name, part in level.parts.items():
        kinds = _KINDS.get(name)
        chosen = {
            dotted: module.get_parameter("weight")
            for dotted, module in matrices.items()
            if kinds is None or place_of(dotted).kind in kinds
        }
        if not chosen:
            raise FinepruneError(
                f"structure.{name}: none of the {len(matrices)} chosen matrices is in the {_plain(name)} "
                f"of a block, for example {next(iter(matrices))}; structure='row' takes any matrix"
            )
        for unit in part.units:
            if unit in TIED:
                found = dict(_tied(model, name, unit, chosen, config))
            else:
                found = {dotted: _single(unit, dotted, matrices[dotted]) for dotted in chosen}
            grids |= {
                dotted: replace(grid, part=name, by_flops=config.budget == "flops")
                for dotted, grid in found.items()
            }
    grids = {name: grids[name] for name in matrices if name in grids}
    if config.latency_table is not None:
        return timed(grids, LatencyTable.load(config.latency_table), model, config)
    return grids


def check_rounding(grids: Mapping[str, Grid], round_to: int) -> None:
    """Raise `FinepruneError` where a feed-forward has so few neurons that `round_to` leaves out none."""
    for name, grid in grids.items():
        if grid.kind == "neuron" and 1 < math.prod(grid.shape) <= round_to:
            raise FinepruneError(
                f"round_to={round_to}: {name} reads {math.prod(grid.shape)} neurons, so that all would stay; "
                "give at most half of that"
            )


def governed(grids: Mapping[str, Grid]) -> list[str]:
    """Return the names of all matrices that a mask zeroes in the end: those of the grids, and followers."""
    names = [*grids, *(lines.matrix for grid in grids.values() for lines in grid.followers)]
    return list(dict.fromkeys(names))


def _plain(part: str) -> str:
    return part.replace("_", "-")


def _single(unit: Unit, name: str, module: nn.Module) -> Grid:
    """Return the grid of a unit that lies in one matrix."""
    weight, transposed = module.get_parameter("weight"), is_transposed(module)
    if isinstance(unit, tuple):
        return units.blocks(name, weight, *unit, transposed)
    if unit == "element":
        return units.elements(name, weight)
    make: dict[str, Callable[[str, Tensor, bool], Grid]] = {"row": units.rows, "column": units.columns}
    return make[unit](name, weight, transposed)


def _tied(
    model: nn.Module, part: str, unit: Unit, chosen: Mapping[str, Tensor], config: PruningConfig
) -> Iterator[tuple[str, Grid]]:
    """Yield the grids of units of several matrices, with the names of the matrices that read them."""
    seen: set[str] = set()
    taken_any = False
    for half in _halves(model, part):
        lines = _lines_of(half, unit, whole=unit == part)
        names = {entry.matrix for entry in lines}
        taken = names & set(chosen)
        seen |= {entry.matrix for entry in half.lines}
        if not taken:
            continue
        if taken != names:
            raise FinepruneError(
                f"{half.name}: a {unit} needs all of its matrices, and targets or exclude take "
                f"{min(taken)} without {min(names - taken)}; exclude the whole {_plain(part)}"
            )
        needed = _DIMS.get(unit, ("O",) if isinstance(half, Attention) else ("FFN out",))
        for kind in needed:
            found = [entry.matrix for entry in lines if entry.kind == kind]
            if len(found) != 1:
                raise FinepruneError(
                    f"{half.name}: has {', '.join(found) or 'nothing'} as {kind} of its {unit}s, and one is "
                    "needed; structure='row' fits it"
                )
        read = next(entry for entry in lines if entry.kind == needed[-1])
        taken_any = True
        yield read.matrix, _grid(half, lines, read, str(unit), chosen, config)
    rest = [name for name in chosen if name not in seen]
    if rest:
        raise FinepruneError(
            f"structure.{part}={unit!r}: the {unit}s of {rest[0]} cannot be told from its name, its shape "
            "and the model's configuration; structure=element, row or blocks fit any matrix, or "
            "leave it out with exclude"
        )
    if not taken_any:
        raise FinepruneError(
            f"structure.{part}={unit!r}: targets or exclude leave none of the matrices of a {unit}, for "
            f"example {min(chosen)} alone; choose its {' and '.join(_DIMS[unit])}"
        )


def _lines_of(half: Attention | FeedForward, unit: Unit, whole: bool) -> tuple[Lines, ...]:
    """Return the lines of the units of a half, which may be fewer than all of it."""
    if whole:
        return tuple(entry._replace(units=np.zeros_like(entry.units)) for entry in half.lines)
    if isinstance(half, Attention) and unit in _DIMS:
        return half.dims(*_DIMS[unit])
    return half.lines


def _halves(model: nn.Module, part: str) -> Iterator[Attention | FeedForward]:
    for block in layout_of(model):
        yield from block.attentions if part == "attention" else block.feed_forwards


def _grid(
    half: Attention | FeedForward,
    lines: tuple[Lines, ...],
    read: Lines,
    kind: str,
    chosen: Mapping[str, Tensor],
    config: PruningConfig,
) -> Grid:
    """Return the grid of an attention or a feed-forward, on the matrix that reads its units."""
    count = int(read.units.max()) + 1
    weight = chosen[read.matrix]
    unit_of = np.full(weight.shape[read.axis], -1)
    unit_of[read.positions] = read.units
    size = weight.shape[1 - read.axis]
    weights = sum(len(entry.positions) * chosen[entry.matrix].shape[1 - entry.axis] for entry in lines)
    product = head_size = 0
    if isinstance(half, Attention) and kind in _DIMS:
        head_size = half.sizes.size  # a dim that goes leaves the product of its head as it is
    elif isinstance(half, Attention):  # QK' and its product with V, each n·d for each head and token
        product = 2 * config.budget_length * half.sizes.size * half.sizes.heads // count
    return Grid(
        kind,
        (count,),
        LineExpansion(read.axis, unit_of.tolist(), size),
        weights // count,
        product,
        reader=read.matrix,
        followers=tuple(entry for entry in lines if entry is not read),
        half=half.name,
        head_size=head_size,
    )


def _check_density(grids: Mapping[str, Grid], config: PruningConfig, level: Level) -> None:
    """Raise `FinepruneError` where a density keeps less than half of the smallest unit that it ranks."""
    if not config.controlled or config.latency_table is not None:
        return
    alone = (config.scope or config.traits.scopes[0]) == "local"
    advise = alone and config.scope is None  # who asked for it, as `calibrate` does, has a reason
    listed = list(grids.items())
    for indices, density in rankings(list(grids.values()), level, config.density):
        members = [listed[index] for index in indices]
        for ranked in [[member] for member in members] if alone else [members]:
            total = sum(_cost(grid) for _, grid in ranked)
            name, smallest = min(ranked, key=lambda member: member[1].cost)
            # One element always stays.
            if not smallest.is_elements and density * total < smallest.cost / 2:
                raise FinepruneError(
                    f"density={density:g}: keeps less than one {smallest.kind}, which is "
                    f"{smallest.cost / total:.2%} of {name if alone else 'what is ranked'}; give a higher "
                    "density" + (' or scope="global", which ranks all matrices together' if advise else "")
                )


def _check_levels(found: Sequence[Mapping[str, Grid]], config: PruningConfig) -> None:
    """Raise `FinepruneError` where an outer level leaves fewer weights than the whole pruning is to keep."""
    outer, inner = ([*grids.values()] for grids in found)
    total = sum(map(_cost, inner))
    left = total - sum(
        (1 - density) * sum(_cost(outer[index]) for index in indices)
        for indices, density in rankings(outer, config.levels[0], config.density)
    )
    if config.density * total > left * (1 + 1e-6):
        raise FinepruneError(
            f"density={config.density:g}: the outer level of the structure leaves {left / total:.2%} of the "
            "weights; give a lower density, or the level a higher one"
        )


def _cost(grid: Grid) -> float:
    """Return what all units of a grid take of the budget."""
    return math.prod(grid.shape) * grid.cost


def rankings(grids: Sequence[Grid], level: Level, density: float) -> list[tuple[list[int], float]]:
    """Return which grids are ranked together, by their indices, and the final density of each ranking.

    Args:
        grids: Those of the level.
        level: Of the structure.
        density: The density of the whole pruning, which is that of the innermost level.
    """
    parts = level.parts
    if all(part.density is None for part in parts.values()):
        return [(list(range(len(grids))), density if level.density is None else level.density)]
    own: dict[str, Any] = {name: part.density for name, part in parts.items()}
    return [
        ([index for index, grid in enumerate(grids) if grid.part == name], density)
        for name, density in own.items()
    ]
