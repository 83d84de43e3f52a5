"""Heads and neurons: those go whose loss the others can make up for best (ZipLM, Kurtic et al. 2023).

A unit is some columns S of the matrix that reads it. Without it the output changes by
tr(W_S (H^-1_SS)^-1 W_S^T) if the columns that stay are fitted anew, by least squares. After some units are
gone, the losses of the others are computed again.
"""

import torch
from torch import Tensor

from fineprune.pruning.calibration.layer import Layer, best, factor

_ROUNDS = 16  # in which the units go, where there are as many


def fitted(layer: Layer, unit_of: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the weight with the columns of `keep` units, fitted anew, and which units these are.

    Args:
        layer: The matrix that reads the units.
        unit_of: (inputs,): the unit of each column.
        keep: The units that remain.
    """
    hessian, goal = layer.hessian, layer.weight * layer.alive
    alive = torch.ones(int(unit_of.max()) + 1, dtype=torch.bool, device=unit_of.device)
    each = -(-(len(alive) - keep) // _ROUNDS)
    while True:
        rest = alive[unit_of].nonzero().squeeze(1)
        inverse = torch.cholesky_inverse(factor(hessian[rest][:, rest], layer.name))
        weight = goal @ hessian[:, rest] @ inverse
        count = int(alive.sum())
        if count <= keep:
            weight = weight + layer.weight[:, rest] * ~layer.alive[rest]  # no fit of what was always 0
            return torch.zeros_like(layer.weight).index_copy_(1, rest, weight), alive
        losses = _losses(weight, inverse, unit_of[rest], len(alive)).masked_fill(~alive, -1)
        alive = best(losses, max(keep, count - each)) & alive


def refitted(layer: Layer, unit_of: Tensor, alive: Tensor) -> Tensor:
    """Return the weight with the columns of some units, fitted anew by least squares.

    Args:
        layer: The matrix that reads the units.
        unit_of: (inputs,): the unit of each column.
        alive: (units,), bool: which remain.
    """
    rest = alive[unit_of].nonzero().squeeze(1)
    matrix = torch.zeros_like(layer.weight)
    if len(rest):
        hessian = layer.hessian
        inverse = torch.cholesky_inverse(factor(hessian[rest][:, rest], layer.name))
        matrix[:, rest] = (layer.weight * layer.alive) @ hessian[:, rest] @ inverse
        matrix += layer.weight * (alive[unit_of] & ~layer.alive)  # no fit of what was always 0
    return matrix


def _losses(weight: Tensor, inverse: Tensor, unit_of: Tensor, units: int) -> Tensor:
    """Return the loss of each unit, 0 for those without columns."""
    if len(unit_of.unique()) == len(unit_of):
        losses = weight.square().sum(0) / inverse.diagonal()
        return losses.new_zeros(units).index_copy_(0, unit_of, losses)
    result = weight.new_zeros(units)
    for unit in unit_of.unique():
        columns = (unit_of == unit).nonzero().squeeze(1)
        part = weight[:, columns]
        result[unit] = (torch.linalg.solve(inverse[columns][:, columns], part.mT) * part.mT).sum()
    return result


def by_norms(layer: Layer, unit_of: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the weight with the columns of `keep` units, as they are: those of largest ||W_:j|| ||x_j||."""
    squares = layer.weight.square().sum(0) * layer.gram.diagonal()
    alive = best(squares.new_zeros(int(unit_of.max()) + 1).index_add_(0, unit_of, squares), keep)
    return layer.weight * alive[unit_of], alive
