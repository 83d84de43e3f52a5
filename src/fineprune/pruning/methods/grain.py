"""GRAIN (Yang et al. 2023): units whose removal changes the loss least, and thin heads empty.

With g = dL/dW', each step gives a unit the importance I = |sum of g·W|, over the weights that its mask is on:
what the loss changes by at first order where the unit goes. Its score is a running mean that starts near 0,

    S <- decay·S + (1 - decay)·I·r,   r = tanh(D/alpha) of a value dim, else 1.

D is the share of its head's value dims that are left, so that dims of thin heads go next, and heads empty in
place of all getting thin. What is cut does not come back: it ranks behind all that is left. The query dims of
a head without value dims are the first to go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fineprune._validation import is_number
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.methods.soft_movement import FLOOR
from fineprune.pruning.score_rules import Observed
from fineprune.pruning.target import Target, values_left

_CUT = -1.0  # the score of what is cut; others are 0 or more
_NOTHING = 1e-20  # of the size: before the first gradient larger units stay, and no importance is so small


@dataclass(frozen=True)
class Options:
    """The options of GRAIN."""

    decay: float = 0.998
    """Share of the past in the running mean of the importance, in [0, 1)."""

    alpha: float = 0.3
    """The share of value dims below which a head is thin; the larger, the more its dims lose. 0: no dim
    loses."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range."""
        if not is_number(self.decay) or not 0 <= self.decay < 1:
            raise FinepruneError(f"options.decay={self.decay!r}: must be a number in [0, 1), such as 0.998")
        if not is_number(self.alpha) or self.alpha < 0:
            raise FinepruneError(f"options.alpha={self.alpha!r}: must be a number, 0 or more, such as 0.3")


class Grain(Method):
    """Cut the units of least importance for good, and those of thin heads first."""

    Options = Options

    def parts(self) -> Parts:
        return Parts(Importance(self.options), floor=FLOOR if self.scope == "global" else 0.0)


class Importance(Observed):
    """The score S, -1 of what is cut."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def start(self, size: Tensor) -> Tensor:
        return size * _NOTHING

    @torch.no_grad()
    def observe(self, targets: Sequence[Target], step: int, lr: Callable[[Target], float]) -> None:
        shares = {
            target.masked.grid.half: values_left(target)
            for target in targets
            if target.masked.grid.kind == "value_dim"
        }
        for target in targets:
            scores, grid = ranks.local(target.scores), target.masked.grid
            share = shares[grid.half].repeat_interleave(grid.head_size) if grid.half in shares else None
            if target.scores.grad is not None:
                importance = ranks.local(target.scores.grad).abs()
                if grid.kind == "value_dim" and share is not None:
                    importance *= ranks.rows_like(self._factor(share), target.scores)
                scores.lerp_(importance, 1 - self._options.decay)
            if grid.kind == "query_dim" and share is not None:
                scores.masked_fill_(ranks.rows_like(share == 0, target.scores), 0.0)
            scores.masked_fill_(ranks.rows_like(~target.masked.units, target.scores), _CUT)

    def _factor(self, share: Tensor) -> Tensor:
        """Return tanh(D/alpha)."""
        return torch.tanh(share / self._options.alpha) if self._options.alpha else torch.ones_like(share)
