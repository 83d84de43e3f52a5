"""How scores start, how they move, and what is ranked.

The score S of a unit receives S.grad = dL/dW'·W, summed over the unit (Eq. 2) and, by the time an optimizer
steps, reduced over processes. Methods differ in what they make of it: movement lets the optimizer follow it,
sensitivity averages its size. Magnitude reads the weight and needs none.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fineprune.config import PruningConfig
from fineprune.pruning.distributed import ranks
from fineprune.pruning.selection import Key
from fineprune.pruning.target import Target


class Ranked(NamedTuple):
    """What Top_v ranks: tensors with an entry a unit, and a function of them that needs no copy."""

    tensors: list[Tensor]
    key: Key | None = None


class ScoreRule(ABC):
    """The rule of a score."""

    @abstractmethod
    def start(self, size: Tensor) -> Tensor | None:
        """Return S before the first step; None where the weight is the score.

        Args:
            size: `Target.size` of the units, float32 of the grid's shape.
        """

    @abstractmethod
    def ranked(self, targets: Sequence[Target]) -> Ranked:
        """Return what is ranked now."""

    def stops(self, targets: Sequence[Target], density: float) -> list[float]:
        """Return the densities at which a cut to `density` ranks anew, the last of them `density`."""
        return [density]

    def statistics(self, size: Tensor) -> dict[str, Tensor]:
        """Return what the rule keeps beside the scores before the first step, by name."""
        return {}


class WeightSize(ScoreRule):
    """The score is the size of the weight; of larger units the root mean square of their weights."""

    def start(self, size: Tensor) -> None:
        return None

    def ranked(self, targets: Sequence[Target]) -> Ranked:
        if all(target.masked.grid.is_elements for target in targets):
            return Ranked([target.weight for target in targets], torch.abs)
        return Ranked([target.size() for target in targets])


class Learned(ScoreRule):
    """The optimizer moves the score along its gradient, as `PruningConfig.score_optimizer` says.

    Args:
        config: Says how scores start (`score_init`).
        zero: S of a start from zero. A start from magnitude adds |W| / mean|W| to it, the mean being that of
            the weights that are not 0: those of a pruned model begin as those of a dense one do.
        centered: Take off the mean of what is added, which is 1.
    """

    def __init__(self, config: PruningConfig, zero: float = 0.0, centered: bool = False) -> None:
        self._by_size = config.score_init != "zero"
        self._zero, self._centered = zero, centered

    def start(self, size: Tensor) -> Tensor:
        scores = torch.full_like(size, self._zero)
        if self._by_size:
            share = size.numel() / torch.count_nonzero(size).clamp_min(1)
            scores += size / (size.mean() * share).clamp_min(torch.finfo(torch.float32).tiny)
            if self._centered:
                scores -= 1
        return scores

    def ranked(self, targets: Sequence[Target]) -> Ranked:
        return Ranked([target.scores for target in targets])


_LEAST = 1e-30  # far below the scores of gradients, and its product with a weight is a normal float32


@torch.no_grad()
def order_ties_by_size(target: Target, scores: Tensor) -> None:
    """Add next to nothing of the units' size to scores of gradients, so that it orders those that are equal.

    All are 0 before the first cut of a student that is its own teacher: it has no gradient, and a ranking by
    position would cut the last layer whole.

    Args:
        target: The matrix.
        scores: Its scores, or the part of them in this process; changed in place.
    """
    scores.add_(ranks.local(target.size()), alpha=_LEAST)


class Observed(ScoreRule):
    """The score is a statistic of the gradients: the rule sets it, and no optimizer moves it."""

    def start(self, size: Tensor) -> Tensor:
        return torch.zeros_like(size)

    def ranked(self, targets: Sequence[Target]) -> Ranked:
        return Ranked([target.scores for target in targets])

    @abstractmethod
    def observe(self, targets: Sequence[Target], step: int, lr: Callable[[Target], float]) -> None:
        """Read the gradients before an optimizer step, reduced over processes and clipped.

        Args:
            targets: The targets; `scores.grad` is dL/dW'·W, `weight.grad` dL/dW.
            step: The number of this optimizer step, from 1.
            lr: Returns the learning rate of a target's weight at this step.
        """
