"""ALPS (Meng et al. 2024, arXiv:2406.07831): the weights that stay are found by ADMM, then fitted.

min ||(B - W) X||^2 where B has k entries: B solves it with a pull towards D, which has them. The pull grows
until the entries of D no longer change; conjugate gradients then fit their values.
"""

import torch
from torch import Tensor

from fineprune.pruning.calibration.layer import Layer, best, not_definite

_FIRST_PULL = 0.1  # rho, where H has 1 on its diagonal
_STEPS = 300
_EVERY = 3  # steps between two looks at the entries
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # above this share of changed entries, rho grows so
_FIT_STEPS = 10


def cut(layer: Layer, keep: int) -> Tensor:
    """Return the weight with `keep` entries, chosen and fitted together."""
    hessian = layer.hessian
    scale = hessian.diagonal().sqrt()
    hessian = hessian / scale / scale[:, None]
    goal = layer.weight * layer.alive * scale
    wanted, keep = keep, min(keep, len(goal) * int(layer.alive.sum()))
    starts = (goal * best(goal.abs(), keep), _search(hessian, goal, keep, layer.name))
    fitted = [fit(hessian, goal, start, start != 0) for start in starts]  # on few weights the search may fail
    errors = [float(((entry - goal) @ hessian * (entry - goal)).sum()) for entry in fitted]
    return layer.with_unseen(fitted[errors.index(min(errors))] / scale, wanted - keep)


def _search(hessian: Tensor, goal: Tensor, keep: int, name: str) -> Tensor:
    """Return D of the ADMM, which has `keep` entries."""
    values, vectors = torch.linalg.eigh(hessian)
    if not bool((values > 0).all()):
        raise not_definite(name)
    pulled, dual, rho = goal, torch.zeros_like(goal), _FIRST_PULL
    wanted = goal @ hessian
    support = torch.ones_like(goal, dtype=torch.bool)
    for step in range(1, _STEPS + 1):
        free = (wanted - dual + rho * pulled) @ vectors / (values + rho) @ vectors.mT
        pulled = free + dual / rho
        mask = best(pulled.abs(), keep)
        pulled = pulled * mask
        dual = dual + rho * (free - pulled)
        if step % _EVERY == 0:
            changed = int(torch.count_nonzero(mask ^ support)) / max(keep, 1)
            if changed == 0:
                break
            rho *= next(growth for share, growth in _GROWTH if changed > share)
            support = mask
    return pulled


def fit(hessian: Tensor, goal: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    """Return the entries of `mask` that bring the output closest to that of `goal`, row by row.

    Ten steps of conjugate gradients from `start` are exact for rows of up to ten entries.
    """
    weight = start * mask
    residual = ((goal - weight) @ hessian) * mask
    direction, size = residual, residual.square().sum(1, keepdim=True)
    for _ in range(_FIT_STEPS):
        product = (direction @ hessian) * mask
        step = size / (direction * product).sum(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
        weight = weight + step * direction
        residual = residual - step * product
        before, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + size / before.clamp_min(torch.finfo(size.dtype).tiny) * direction
    return weight
