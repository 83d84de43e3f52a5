"""SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774): the weights that stay make up for those that go.

Columns are visited from left to right. A weight that is cut moves those to the right of it in its row, as the
inverse of H says, so that the output changes least.
"""

import torch
from torch import Tensor

from fineprune.pruning.calibration.layer import Layer, best, factor

_COLUMNS = 128  # of a block, in which the weights to cut are chosen at once


def cut(layer: Layer, keep: int) -> Tensor:
    """Return the weight with `keep` entries, an equal share in each block of columns, corrected."""
    lower = factor(layer.hessian, layer.name)
    upper = factor(torch.cholesky_inverse(lower), layer.name).mT
    alive = layer.alive
    weight = layer.weight * alive
    mask = torch.zeros_like(weight, dtype=torch.bool)
    wanted, kept, keep = keep, 0, min(keep, len(weight) * int(alive.sum()))
    for start in range(0, weight.shape[1], _COLUMNS):
        block = slice(start, start + _COLUMNS)
        share = int(alive[: block.stop].sum()) / max(int(alive.sum()), 1)
        scores = (weight[:, block] / upper.diagonal()[block]).square()
        mask[:, block] = best(scores.masked_fill(~alive[block], -1), round(share * keep) - kept)
        kept = round(share * keep)
        errors = _correct(weight[:, block], mask[:, block], upper[block, block])
        weight[:, block.stop :] -= errors @ upper[block, block.stop :]
    return layer.with_unseen(weight * mask, wanted - keep)


def _correct(weight: Tensor, mask: Tensor, upper: Tensor) -> Tensor:
    """Cut the columns of a block one by one, in place; return the errors that later columns make up for."""
    errors = torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        errors[:, column] = (weight[:, column] / upper[column, column]).masked_fill(mask[:, column], 0)
        weight[:, column:] -= errors[:, column, None] * upper[column, column:]
    return errors
