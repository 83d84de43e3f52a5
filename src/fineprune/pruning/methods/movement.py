"""Movement pruning (Sanh, Wolf and Rush 2020, arXiv:2005.07683)."""

from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.methods.soft_movement import FLOOR, MeanSigmoid
from fineprune.pruning.score_rules import Learned


class Movement(Method):
    """Movement pruning (MvP): Top_v of learned scores, straight-through.

    A `penalty` adds lambda * R(S) of soft movement to the loss; Top_v keeps the scheduled density anyway.
    A global ranking leaves each matrix the share that soft movement leaves it.
    """

    def parts(self) -> Parts:
        penalty = None if self.config.penalty is None else MeanSigmoid()
        floor = FLOOR if self.scope == "global" else 0.0
        return Parts(rule=Learned(self.config), floor=floor, penalty=penalty)
