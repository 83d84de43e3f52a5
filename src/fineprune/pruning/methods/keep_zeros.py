"""Fine-tuning of a sparse model, whose zeros stay."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.schedule import Schedule


class KeepZeros(Method):
    """Keep the zeros that a model came with: the mask is W != 0, from before the first step on."""

    def parts(self) -> Parts:
        return Parts(rule=None, plan=_at_once, first_mask=_nonzero, check=_check)


def _at_once(config: PruningConfig, total: int) -> Schedule:
    """Plan a schedule that is at the final density from the first step on."""
    return Schedule.plan(total, 0, 0)._replace(cooldown=total)


def _nonzero(weight: Tensor) -> Tensor:
    return torch.ne(weight.detach(), 0)


def _check(weights: Mapping[str, Tensor]) -> None:
    if all(bool((weight != 0).all()) for weight in weights.values()):
        raise FinepruneError(
            f"method='keep_zeros': none of the {len(weights)} matrices has a zero, so there is nothing "
            "to hold: start from a pruned model, or choose another method"
        )
