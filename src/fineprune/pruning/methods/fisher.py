"""Diagonal Fisher: the loss that a second-order estimate expects from removing a weight.

With g = dL/dW', the expected loss of removing a weight W is ½·W²·(E[g²] + lambda). Here E[(W·g)²] is a
running mean over the steps (of larger units, of the square of their summed W·g), and lambda is a share of the
mean g². A weight that is cut still has a W·g, so that it can come back. Adam's second moment is such a mean,
but of masked gradients, which are 0 for a cut weight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.methods.base import Method, Parts, mean_over_units
from fineprune.pruning.methods.soft_movement import FLOOR
from fineprune.pruning.score_rules import Observed, Ranked
from fineprune.pruning.target import Target


@dataclass(frozen=True)
class Options:
    """The options of the diagonal Fisher."""

    decay: float = 0.999
    """Share of the past in the running mean of (W·g)², in [0, 1)."""

    damp: float = 0.1
    """lambda as a share of the mean g² of all weights, at least 0; the larger, the closer to magnitude."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range."""
        for name, most in (("decay", 1.0), ("damp", float("inf"))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < most:
                allowed = (
                    "a number in [0, 1), for example 0.999" if name == "decay" else "a number, 0 or more"
                )
                raise FinepruneError(f"options.{name}={value!r}: must be {allowed}")


class Fisher(Method):
    """Cut the weights whose removal costs least by the diagonal Fisher information."""

    Options = Options

    def parts(self) -> Parts:
        return Parts(ExpectedLoss(self.options), floor=FLOOR if self.scope == "global" else 0.0)


class ExpectedLoss(Observed):
    """The score E[(W·g)²], ranked with lambda·W² added; before the first gradient W² alone."""

    def __init__(self, options: Options) -> None:
        self._options = options

    @torch.no_grad()
    def observe(self, targets: Sequence[Target], step: int, lr: Callable[[Target], float]) -> None:
        for target in targets:
            if target.scores.grad is not None:
                squares = ranks.local(target.scores.grad).square()
                ranks.local(target.scores).lerp_(squares, 1 - self._options.decay)

    @torch.no_grad()
    def ranked(self, targets: Sequence[Target]) -> Ranked:
        scores = [target.scores for target in targets]
        squares = [target.size().square_().mul_(target.masked.grid.weights) for target in targets]
        fisher = float(mean_over_units([ranks.local(entry) for entry in scores], targets))
        mean = float(mean_over_units([ranks.local(entry) for entry in squares], targets))
        lambda_ = self._options.damp * fisher / mean if fisher > 0 and mean > 0 else 1.0
        sums = [
            torch.add(score, square, alpha=lambda_) for score, square in zip(scores, squares, strict=True)
        ]
        return Ranked([entry.mul_(0.5) for entry in sums])
