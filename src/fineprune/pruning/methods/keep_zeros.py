"""The zeros that a model came with stay."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods.base import Control, Method, Target
from fineprune.pruning.schedule import Schedule


class KeepZeros(Method):
    """The zeros that a model came with stay: the mask is W != 0, from before the first step on."""

    @classmethod
    def plan(cls, config: PruningConfig, total: int) -> Schedule:
        return Schedule.plan(total, 0, 0)._replace(cooldown=total)  # at the final density at once

    @classmethod
    def check(cls, weights: Mapping[str, Tensor]) -> None:
        if all(bool((weight != 0).all()) for weight in weights.values()):
            raise FinepruneError(
                f"method='keep_zeros': none of the {len(weights)} matrices has a zero, so there is nothing "
                "to hold: start from a pruned model, or choose another method"
            )

    def masked_weight(self, weight: Tensor) -> MaskedWeight:
        masked = MaskedWeight(weight, None)
        torch.ne(weight.detach(), 0, out=masked.mask)
        return masked

    def refresh(self, targets: Sequence[Target], step: int) -> Control:
        return Control()
