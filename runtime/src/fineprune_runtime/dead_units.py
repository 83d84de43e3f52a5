"""The one rule for dead attention heads and feed-forward neurons, those that contribute a constant at most.

Reports count units by it and the engine removes them by it. It looks only at which lines (rows or columns) of
the matrices keep a weight.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]


class HeadSizes(NamedTuple):
    """The sizes of one attention: Q has heads x size outputs, K and V have groups x size."""

    heads: int
    groups: int
    """Heads of K and V, each shared by heads / groups heads of Q."""

    size: int


def living_heads(sizes: HeadSizes, read: Flags | None = None, values: Flags | None = None) -> Flags:
    """Return which heads are alive, (heads,): O reads at least one of their values, and V gives them one.

    A head without rows of V adds V's bias whatever the keys are, since the weights of a softmax add up to
    one. A head without rows of Q or K is alive: its attention is uniform, or a bias by distance decides it,
    and it adds a mean of the values.

    Args:
        sizes: of the attention.
        read: whether each column of O keeps a weight, (heads * size,); None: all do.
        values: whether each row of V keeps a weight, (groups * size,); None: all do.
    """
    alive = np.ones(sizes.heads, np.bool_)
    if read is not None:
        alive &= read.reshape(-1, sizes.size).any(axis=1)
    if values is not None:
        groups = values.reshape(-1, sizes.size).any(axis=1)
        alive &= np.repeat(groups, sizes.heads // max(sizes.groups, 1))
    return alive


def living_neurons(*sides: Flags) -> Flags:
    """Return which neurons are alive, (neurons,): those that keep a weight on every side.

    Args:
        *sides: whether each neuron's line keeps a weight, (neurons,): its column of FFN-out, its row of
            FFN-in, or of both in a gated feed-forward.
    """
    alive: Flags = np.logical_and.reduce(sides)
    return alive
