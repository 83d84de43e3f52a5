"""Reweighted proximal pruning (RPP, Guo et al. 2019), which cuts at a density by request.

The problem is min L(W) + gamma·Σ alpha_i·|w_i|. The optimizer steps on L alone, since an L1 term inside
Adam's gradient does not make zeros, and a soft threshold follows:

    W' = sign(W)·max(|W| - t·alpha_i, 0),  alpha_i = 1 / (|w_i| + epsilon),

which hardly shrinks large weights. In place of a guessed gamma, t is set such that the scheduled density
stays. W itself gets all of dL/dW', and keeps its value under the threshold. At the final density W' is folded
into W, and masked training goes on; `fix_masks` fixes the masks, as RPP does for fine-tuning.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fineprune._validation import is_number
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.methods.base import CHANGES_VALUES, Method, Parts, refuse_frozen
from fineprune.pruning.methods.st3 import SoftThreshold
from fineprune.pruning.methods.threshold_forms import (
    Cut,
    Shrunk,
    place_in_the_middle,
    set_thresholds,
    toward_zero,
)
from fineprune.pruning.score_rules import WeightSize
from fineprune.pruning.target import Target


@dataclass(frozen=True)
class Options:
    """The options of proximal pruning."""

    reweight: bool = True
    """Shrink a weight by t·alpha, the less the larger it is; False shrinks all by t, as plain L1 does."""

    epsilon: float = 1e-3
    """What alpha's denominator adds to |W|, as a share of the mean |W|, greater than 0."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range or of a wrong type."""
        if not isinstance(self.reweight, bool):
            raise FinepruneError(f"options.reweight={self.reweight!r}: must be true or false")
        if not is_number(self.epsilon) or self.epsilon <= 0:
            raise FinepruneError(
                f"options.epsilon={self.epsilon!r}: must be a number greater than 0, for example 1e-3"
            )


class Proximal(Method):
    """Proximal pruning: an L1 penalty as a soft threshold after the step, whose size the density decides."""

    Options = Options

    def parts(self) -> Parts:
        reweight = self.options.reweight
        return Parts(
            WeightSize(),  # |w|·(|w| + epsilon) has the same order
            form=Reweighted if reweight else SoftThreshold,
            set_forms=set_thresholds(self, self._place if reweight else place_in_the_middle),
            check=functools.partial(refuse_frozen, reason=f"proximal {CHANGES_VALUES}"),
            weight_decay=False,
        )

    def _place(self, targets: Sequence[Target], cuts: Sequence[Cut]) -> None:
        weights = [target.weight.detach() for target in targets]
        mean = ranks.mean_of_means([ranks.local(weight).abs().float() for weight in weights], weights)
        epsilon = self.options.epsilon * mean
        for target, (least, most) in zip(targets, cuts, strict=True):
            form = target.masked.form
            assert isinstance(form, Reweighted)
            form.place(epsilon, least, most)


class Reweighted(Shrunk):
    """W' = sign(W)·max(|W| - t / (|W| + epsilon), 0).

    Attributes:
        epsilon: Float32 buffer, the offset of alpha's denominator.
    """

    epsilon: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.register_buffer("epsilon", torch.ones((), dtype=torch.float32, device=weight.device))

    def place(self, epsilon: Tensor, least: Tensor, most: Tensor) -> None:
        """Set epsilon, and t half way between what it would be to cut at `least` and at `most`."""
        self.epsilon.copy_(epsilon)
        middle = (least * (least + epsilon) + most * (most + epsilon)) / 2
        self.threshold.copy_(torch.where(most >= 0, middle, 0))

    def shrunk(self, weight: Tensor, mask: Tensor) -> Tensor:
        return toward_zero(weight, self.threshold / (weight.abs() + self.epsilon), mask)
