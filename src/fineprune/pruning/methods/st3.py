"""ST-3 (Vanderschueren and De Vleeschouwer 2023): soft thresholds, with gradients for all weights.

With t between the weights that Top_v keeps and those that it cuts, ranked globally by |W|,

    W' = c_i·sign(W)·max(|W| - t, 0),  c_i = 1.01 / (r_i + 0.01),  r_i = mean|W_i ⊙ M_i| / mean|W_i|

for each row i, where the scale c_i makes up for what the row loses. All weights get dL/dW', so a weight goes
through 0 without a jump, and comes back as easily. At the final density W' is folded into W.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.methods.base import CHANGES_VALUES, Method, Parts, refuse_frozen
from fineprune.pruning.methods.threshold_forms import (
    Shrunk,
    place_in_the_middle,
    set_thresholds,
    toward_zero,
)
from fineprune.pruning.score_rules import WeightSize

_TINY = 1e-6  # keeps the ratio of an empty row a number
_OFFSET = 0.01  # bounds the scale of a row at 101


@dataclass(frozen=True)
class Options:
    """The options of ST-3."""

    rescale: bool = True
    """Scale each row up by about the share of |W| that it loses; False leaves what the threshold leaves."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value of a wrong type."""
        if not isinstance(self.rescale, bool):
            raise FinepruneError(f"options.rescale={self.rescale!r}: must be true or false")


class St3(Method):
    """ST-3: weights shrink by a global threshold that rises with the share that is cut."""

    Options = Options

    def parts(self) -> Parts:
        return Parts(
            WeightSize(),
            form=RowScaled if self.options.rescale else SoftThreshold,
            set_forms=set_thresholds(self, place_in_the_middle),
            check=functools.partial(refuse_frozen, reason=f"st3 {CHANGES_VALUES}"),
        )


class SoftThreshold(Shrunk):
    """W' = sign(W)·max(|W| - t, 0)."""

    def shrunk(self, weight: Tensor, mask: Tensor) -> Tensor:
        return toward_zero(weight, self.threshold, mask)


class RowScaled(Shrunk):
    """W' = c_i·sign(W)·max(|W| - t, 0), where a row is one of the matrix as it is stored."""

    def shrunk(self, weight: Tensor, mask: Tensor) -> Tensor:
        size = weight.abs().flatten(1)
        kept, whole = (size * mask.flatten(1)).mean(1), size.mean(1)
        scale = (1 + _OFFSET) / ((kept + _TINY) / (whole + _TINY) + _OFFSET)
        scale = torch.where(self.threshold > 0, scale, 1).view(-1, *[1] * (weight.ndim - 1))
        return toward_zero(weight, self.threshold, mask).mul_(scale)
