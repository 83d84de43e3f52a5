"""Soft movement pruning (Sanh, Wolf and Rush 2020, arXiv:2005.07683, section 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.methods.base import Control, Method, Parts, Penalty, mean_over_units
from fineprune.pruning.score_rules import Learned
from fineprune.pruning.target import Target

_TAU = 0.1  # sigmoid(S) > tau is kept, and tau ends here
FLOOR = 0.005
"""The share that the reference leaves each matrix."""


@dataclass(frozen=True)
class Options:
    """The options of soft movement pruning."""

    penalty_decay: bool = False
    """Let lambda fall linearly to 0 over the cool-down, so that the last masks follow the task alone."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value of a wrong type, or masks that could not follow."""
        if not isinstance(self.penalty_decay, bool):
            raise FinepruneError(f"options.penalty_decay={self.penalty_decay!r}: must be true or false")
        if self.penalty_decay and not config.cooldown:
            raise FinepruneError(
                "options.penalty_decay=true: there is no cool-down to fade in; give cooldown, or leave it out"
            )
        if self.penalty_decay and config.fix_masks:
            raise FinepruneError(
                "options.penalty_decay=true: with fix_masks=true no mask follows the scores in the "
                "cool-down; leave one of them out"
            )


class SoftMovement(Method):
    """Soft movement pruning (SMvP): a threshold on sigmoid(S), a penalty on R(S)."""

    Options = Options

    def parts(self) -> Parts:
        fades = self.options.penalty_decay
        return Parts(rule=Learned(self.config), floor=FLOOR, penalty=MeanSigmoid(), fades=fades)


class MeanSigmoid(Penalty):
    """R(S): sigmoid(S) averaged in each matrix, then over the matrices; of larger units weighed by cost."""

    start, end = 0.0, math.log(_TAU / (1 - _TAU))

    def value(self, targets: Sequence[Target]) -> Tensor:
        return mean_over_units([torch.sigmoid(ranks.local(target.scores)) for target in targets], targets)

    def fixed(self, targets: Sequence[Target], ramp: float, penalty: float) -> Control:
        """Set the paper's mask, 1[sigmoid(S) > tau], with the reference's floor; tau follows the ramp."""
        tau = _TAU * ramp
        cut = math.log(tau / (1 - tau)) if tau > 0 else -math.inf
        scores = [target.scores for target in targets]
        floor = 0.0 if any(target.masked.grid.may_be_empty for target in targets) else FLOOR
        ranks.of(scores).above(scores, cut, [target.masked.units for target in targets], floor)
        return Control(None if math.isinf(cut) else cut, penalty * ramp)
