"""Movement pruning (Sanh, Wolf and Rush 2020, arXiv:2005.07683)."""

from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.score_rules import Learned


class Movement(Method):
    """Movement pruning (MvP): Top_v of learned scores, straight-through."""

    def parts(self) -> Parts:
        return Parts(rule=Learned(self.config))
