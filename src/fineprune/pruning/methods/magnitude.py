"""Gradual magnitude pruning (Zhu and Gupta 2018, arXiv:1710.01878)."""

from dataclasses import dataclass

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.masked_weight import Decayed
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.score_rules import WeightSize


@dataclass(frozen=True)
class Options:
    """The options of magnitude pruning, which say how pruned weights go on training."""

    flow: bool = False
    """Give pruned weights a share of their gradient that falls from 1 to 0 as the density falls."""

    pruned_decay: float = 0.0
    """Add this share of each pruned weight to its gradient, so that it shrinks (SR-STE); for SGD, 2e-4."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range or of a wrong type."""
        if not isinstance(self.flow, bool):
            raise FinepruneError(f"options.flow={self.flow!r}: must be true or false")
        if (
            isinstance(self.pruned_decay, bool)
            or not isinstance(self.pruned_decay, (int, float))
            or not 0 <= self.pruned_decay < 1
        ):
            raise FinepruneError(
                f"options.pruned_decay={self.pruned_decay!r}: must be a number in [0, 1), for example 2e-4"
            )


class Magnitude(Method):
    """Gradual magnitude pruning: the score is |W|, read as W trains."""

    Options = Options

    def parts(self) -> Parts:
        flow, decay = self.options.flow, self.options.pruned_decay
        return Parts(WeightSize(), weight_gradient=Decayed(flow, decay) if flow or decay else "masked")
