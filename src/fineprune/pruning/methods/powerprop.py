"""Powerpropagation (Schwarz et al. 2021) for any elementwise optimizer, as a scale of its steps.

The paper trains phi with W = phi·|phi|^(alpha - 1). A step on phi moves W by a multiple of
|W|^(2 - 2/alpha): large weights move more than small ones, which stay small, and magnitude then separates
what matters. Under Adam the factor is lost, because Adam divides each gradient by its size. So W stays the
parameter, and its step is scaled:

    W <- W + s·(step),  s = |W|^(2 - 2/alpha) / mean|W|^(2 - 2/alpha) over the matrix, clipped to [0.05, 5].

The mean rate is as before, and a weight of 0 stands still, as it does in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim

from fineprune._validation import is_number
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.score_rules import WeightSize
from fineprune.pruning.target import Target

_LEAST, _MOST = 0.05, 5.0
ELEMENTWISE = (
    optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam, optim.SGD, optim.RMSprop, optim.Adagrad,
    optim.Adadelta, optim.ASGD, optim.Rprop,
)  # fmt: skip
"""Optimizers that move each weight by its own gradients alone."""


@dataclass(frozen=True)
class Options:
    """The options of Powerpropagation."""

    power: float = 2.0
    """alpha, from 1 (plain magnitude pruning) to 3; at 2 a step is scaled by |W| / mean|W|."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range or of a wrong type."""
        if not is_number(self.power) or not 1 <= self.power <= 3:
            raise FinepruneError(
                f"options.power={self.power!r}: must be a number in [1, 3]; try 1.5 or 2, and 1 is plain "
                "magnitude pruning"
            )


class Powerprop(Method):
    """Gradual magnitude pruning of weights that grow at a rate by their size."""

    Options = Options

    def parts(self) -> Parts:
        scaled = ScaledSteps(self.options.power)
        return Parts(WeightSize(), attach=scaled.attach if self.options.power > 1 else None)


class ScaledSteps:
    """Scales the steps of the pruned weights, by hooks around those of their optimizer."""

    def __init__(self, power: float) -> None:
        self._exponent = 2 - 2 / power
        self._before: list[Tensor] = []

    def attach(self, optimizer: optim.Optimizer, targets: Sequence[Target]) -> None:
        """Scale the steps of an optimizer from now on.

        Raises:
            FinepruneError: A step of this optimizer is none of each weight by itself.
        """
        if not isinstance(optimizer, ELEMENTWISE):
            known = ", ".join(kind.__name__ for kind in ELEMENTWISE)
            raise FinepruneError(
                f"optimizer={type(optimizer).__name__}: powerprop scales the step of each weight, and knows "
                f"only of {known} that they move each weight by itself; take one of these"
            )

        def before(*_: Any) -> None:
            self._before = [ranks.local(target.weight.detach()).clone() for target in targets]

        def after(*_: Any) -> None:
            self.rescale(targets, self._before)
            self._before = []

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    @torch.no_grad()
    def rescale(self, targets: Sequence[Target], before: Sequence[Tensor]) -> None:
        """Scale what an optimizer added to the weights, given those from before its step."""
        for target, old, scale in zip(targets, before, self.scales(targets, before), strict=True):
            ranks.local(target.weight).sub_(old).mul_(scale.to(old.dtype)).add_(old)

    def scales(self, targets: Sequence[Target], weights: Sequence[Tensor]) -> list[Tensor]:
        """Return s for the weights of the targets: float32, the rows that this process has."""
        speeds = [weight.abs().float().pow_(self._exponent) for weight in weights]
        sums = torch.stack([speed.sum().to(speeds[0].device) for speed in speeds])
        shards = ranks.Shards.of([target.weight for target in targets])
        if shards is not None:
            sums = shards.sum(sums)
        scales = []
        for target, weight, speed, total in zip(targets, weights, speeds, sums, strict=True):
            mean = (total / target.weight.numel()).clamp_min(torch.finfo(torch.float32).tiny)
            scale = speed.div_(mean.to(speed.device)).clamp_(_LEAST, _MOST)
            scales.append(torch.where(weight == 0, 0, scale))
        return scales
