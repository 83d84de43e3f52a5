"""The inner level of two: it chooses among the weights of the units that the outer level keeps.

The parametrization of the outer level comes after that of the inner one, W' = (W ⊙ M_inner) ⊙ M_outer, so
that each gets the gradient of the product. The weights of dead units, followers included, are not ranked and
keep the flags that they last had: a head whose weights were all cut could not return.
"""

from collections.abc import Sequence

from torch import Tensor

from fineprune.pruning.expansion import Lines
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.score_rules import Ranked
from fineprune.pruning.selection import Threshold, keep_count, top_v
from fineprune.pruning.target import Target


def cover(targets: Sequence[Target], outer: Sequence[Target]) -> None:
    """Say of each weight of the inner level which mask of the outer one decides about its lines."""
    lines: dict[str, tuple[MaskedWeight, Lines]] = {}
    for target in outer:
        assert isinstance(target.masked.grid.expansion, Lines)
        lines[target.name] = (target.masked, target.masked.grid.expansion)
        for follower in target.followers:
            _, before = lines.get(follower.lines.matrix, (None, None))  # a fused matrix follows in parts
            shape, axis = follower.weight.shape, follower.lines.axis
            unit_of = [-1] * shape[axis] if before is None else before.unit_of.tolist()
            for position, unit in zip(follower.lines.positions, follower.lines.units, strict=True):
                unit_of[position] = int(unit)
            lines[follower.lines.matrix] = (target.masked, Lines(axis, unit_of, shape[1 - axis]))
    for target in targets:
        target.masked.within = lines.get(target.name)


def inside(values: Sequence[Tensor], targets: Sequence[Target]) -> list[tuple[Tensor, Tensor]]:
    """Return of each value, and of the flags of its target, what the outer level keeps: copies of lines.

    Without an outer level these are the values and the flags themselves.
    """
    found = []
    for value, target in zip(values, targets, strict=True):
        alive, flags = target.masked.alive(), target.masked.units
        if alive is not None:
            value, flags = value.index_select(*alive), flags.index_select(*alive)
        found.append((value, flags))
    return found


def cut_inside(
    ranked: Ranked, targets: Sequence[Target], density: float, floor: float, each: bool
) -> list[Threshold]:
    """Write the flags of the weights that the outer level keeps; return the threshold of each ranking.

    Args:
        ranked: What is ranked, of the inner level's weights.
        targets: The weights of the inner level.
        density: The share of all weights that stays.
        floor: The share of what the outer level keeps of a matrix that a ranking of all leaves it.
        each: Rank matrix by matrix, of each the same share of what the outer level keeps.
    """
    pairs = inside(ranked.tensors, targets)
    living = [pair for pair in pairs if pair[0].numel()]
    there = sum(value.numel() for value, _ in living)
    share = keep_count(density, sum(value.numel() for value in ranked.tensors)) / there
    if share >= 1:
        for _, flags in living:
            flags.fill_(True)
        cuts = []
    elif each:
        cuts = [top_v([value], share, [flags], ranked.key) for value, flags in living]
    else:
        values, masks = zip(*living, strict=True)
        cuts = [top_v(values, share, masks, ranked.key, floor)]
    for (_, flags), target in zip(pairs, targets, strict=True):
        if (alive := target.masked.alive()) is not None:
            target.masked.units.index_copy_(*alive, flags)
    return cuts
