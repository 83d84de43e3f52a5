"""Gradual magnitude pruning (Zhu and Gupta 2018, arXiv:1710.01878)."""

from dataclasses import dataclass
from typing import Literal

from fineprune._messages import choose
from fineprune._validation import is_number
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.masked_weight import Decayed
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.score_rules import WeightSize

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
        given, decay = self.options.weight_gradient, self.options.pruned_decay
        if given == "masked" and not decay:
            return Parts(WeightSize())
        power = {"masked": None, "dense": 0.0, "decayed": _POWERS[self.options.flow]}[given]
        return Parts(WeightSize(), weight_gradient=Decayed(power, decay))
