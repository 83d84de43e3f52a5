"""How many attention heads and feed-forward neurons remain, from the kept weights of rows and columns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fineprune.pruning.anatomy import Block, Kind, Lines, NamedMatrix, blocks_of
from fineprune_runtime.dead_units import Flags, living_heads, living_neurons


class CountedMatrix(NamedMatrix, Protocol):
    """A matrix with the kept weights of each row and of each column, such as a `MatrixSnapshot` of a run."""

    @property
    def rows(self) -> NDArray[np.int32]: ...
    @property
    def columns(self) -> NDArray[np.int32]: ...


class LayerUnits(NamedTuple):
    """The heads and neurons of one layer. Those that cannot be told from the matrices count 0 of 0."""

    stack: str
    layer: int
    heads: int
    heads_left: int
    neurons: int
    neurons_left: int


def remaining_units(matrices: Sequence[CountedMatrix], config: Mapping[str, Any]) -> list[LayerUnits]:
    """Count the heads and neurons that keep a weight where they are made and where they are read.

    A matrix that is not among those given is whole. `fineprune_runtime.dead_units` has the rule.

    Returns:
        The layers whose heads or neurons can be told, in the order of the matrices.
    """
    layers = []
    for block, heads, neurons in _living(matrices, config):
        counts = (*_total(heads), *_total(neurons))
        if any(counts):
            layers.append(LayerUnits(block.stack, block.layer, *counts))
    return layers


def remaining_heads(
    matrices: Sequence[CountedMatrix], config: Mapping[str, Any]
) -> dict[tuple[str, int], tuple[int, ...]]:
    """Return the numbers of the heads that remain, by stack and layer, by the rule of `remaining_units`.

    Heads of a second attention in a layer continue the numbers of the first.
    """
    return {
        (block.stack, block.layer): tuple(np.flatnonzero(np.concatenate(heads)).tolist())
        for block, heads, _ in _living(matrices, config)
        if heads
    }


def _living(
    matrices: Sequence[CountedMatrix], config: Mapping[str, Any]
) -> Iterator[tuple[Block, list[Flags], list[Flags]]]:
    """Yield each block with flags of its living heads, by attention, and neurons, by feed-forward."""
    used = {matrix.name: (matrix.rows > 0, matrix.columns > 0) for matrix in matrices}

    def flags(lines: Iterable[Lines], *kinds: Kind) -> list[Flags]:
        return [used[part.matrix][part.axis][part.positions] for part in lines if part.kind in kinds]

    for block in blocks_of(matrices, config):
        heads = [
            living_heads(
                attention.sizes,
                next(iter(flags(attention.lines, "O")), None),
                next(iter(flags(attention.lines, "V")), None),
            )
            for attention in block.attentions
        ]
        neurons = [
            living_neurons(*flags(forward.lines, "FFN in", "FFN out")) for forward in block.feed_forwards
        ]
        yield block, heads, neurons


def _total(alive: Sequence[Flags]) -> tuple[int, int]:
    """Return how many units there are, and how many are alive."""
    return sum(map(len, alive)), sum(int(flags.sum()) for flags in alive)
