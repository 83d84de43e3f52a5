"""Wanda (Sun et al. 2023, arXiv:2306.11695): in each row the weights of largest |W_ij| ||x_j|| stay."""

import torch
from torch import Tensor

from fineprune.pruning.calibration.layer import Layer, best


def cut(layer: Layer, keep: int) -> Tensor:
    """Return the weight with `keep` entries, as many in each row; nothing else of it changes.

    Where the rows do not divide `keep`, those whose next weight ranks highest get one more. Weights of inputs
    that were always 0 come after all others of their row.
    """
    sizes = layer.weight.abs()
    unseen = sizes - sizes.max() - 1  # below all others
    scores = torch.where(layer.alive, sizes * layer.gram.diagonal().sqrt(), unseen)
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    each, more = divmod(keep, len(scores))
    mask = ranks < each
    if more:
        following = ranks == each
        rows = best(scores.masked_fill(~following, -torch.inf).amax(1), more)
        mask |= following & rows[:, None]
    return layer.weight * mask
