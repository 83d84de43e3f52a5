"""Fill the zeros that remain in a model which was made smaller."""

import math
from typing import Any

import torch
from torch import nn

from fineprune.pruning.targets import find_targets


@torch.no_grad()
def fill_zeros(model: nn.Module, share: float, seed: int) -> int:
    """Replace the zeros of the matrices in a model's blocks by noise, in place, and return their number.

    A zero of W becomes a draw of N(mean W, (share * std W)^2), mean and standard deviation over all entries,
    zeros included, as the reference of Block Pruning has it.

    Args:
        model: The model.
        share: The share of the standard deviation.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    filled = 0
    seen: set[int] = set()
    for module in find_targets(model).values():
        weight: Any = module.get_parameter("weight")
        if id(weight) in seen:
            continue
        seen.add(id(weight))
        zeros = weight == 0
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        mean, deviation = weight.float().mean(), weight.float().std(correction=0)
        if math.isfinite(float(deviation)):
            weight.copy_(torch.where(zeros, noise * (share * deviation) + mean, weight))
        filled += int(zeros.sum())
    return filled
