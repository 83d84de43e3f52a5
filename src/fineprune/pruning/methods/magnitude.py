"""Gradual magnitude pruning (Zhu and Gupta 2018, arXiv:1710.01878)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fineprune._messages import choose
from fineprune._validation import is_number
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import Decayed, WeightGradient
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.score_rules import WeightSize
from fineprune.pruning.target import Target

_POWERS = {"power": 3.0, "linear": 1.0}


@dataclass(frozen=True)
class Options:
    """The options of magnitude pruning, which say how pruned weights go on training."""

    weight_gradient: Literal["masked", "dense", "decayed"] = "masked"
    """The gradient of pruned weights: "masked" gives them none, "dense" all of theirs, "decayed" a share of
    it that falls from 1 to 0 while the density falls."""

    flow: Literal["power", "linear"] = "power"
    """How the share of "decayed" falls: with the cube of Eq. 5, or linearly."""

    pruned_decay: float = 0.0
    """Add this share of each pruned weight to its gradient, so that it shrinks (SR-STE); for SGD, 2e-4."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range, of a wrong type, or without effect."""
        choose(self.weight_gradient, ("masked", "dense", "decayed"), "options.weight_gradient")
        choose(self.flow, tuple(_POWERS), "options.flow")
        if self.flow != "power" and self.weight_gradient != "decayed":
            raise FinepruneError(
                f"options.flow={self.flow!r}: says how weight_gradient='decayed' falls, and weight_gradient "
                f"is {self.weight_gradient!r}; leave flow out"
            )
        if not is_number(self.pruned_decay) or not 0 <= self.pruned_decay < 1:
            raise FinepruneError(
                f"options.pruned_decay={self.pruned_decay!r}: must be a number in [0, 1), for example 2e-4"
            )


class Magnitude(Method):
    """Gradual magnitude pruning: the score is |W|, read as W trains."""

    Options = Options

    def parts(self) -> Parts:
        given: dict[str, WeightGradient] = {
            "masked": "masked",
            "dense": Decayed(0.0),
            "decayed": Decayed(_POWERS[self.options.flow]),
        }
        decay = self.options.pruned_decay
        return Parts(
            WeightSize(),
            weight_gradient=given[self.options.weight_gradient],
            attach=functools.partial(_attach_decay, decay) if decay else None,
        )


def _attach_decay(decay: float, optimizer: torch.optim.Optimizer, targets: Sequence[Target]) -> None:
    """Let pruned weights shrink with each step of an optimizer from now on.

    Backward passes would add their share once for each micro-batch and each use of a layer, and a scaler
    would divide it by the scale of the loss.
    """
    optimizer.register_step_pre_hook(lambda *_: shrink_pruned(targets, decay))


@torch.no_grad()
def shrink_pruned(targets: Sequence[Target], decay: float) -> None:
    """Add the share `decay` of each pruned weight to its gradient; weights without one stay without."""
    for target in targets:
        if target.weight.grad is not None:
            weight, kept = ranks.local(target.weight), ranks.rows_like(target.masked.kept(), target.weight)
            ranks.local(target.weight.grad).add_(torch.where(kept, 0, weight), alpha=decay)
