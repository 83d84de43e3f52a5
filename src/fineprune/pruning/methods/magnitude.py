"""Gradual magnitude pruning (Zhu and Gupta 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fineprune.pruning import selection
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods.base import Method, Target


class Magnitude(Method):
    """Gradual magnitude pruning (Zhu and Gupta 2018): the score is |W|, read as W trains."""

    def masked_weight(self, weight: Tensor) -> MaskedWeight:
        return MaskedWeight(weight, None)

    def ranked(self, targets: Sequence[Target]) -> tuple[list[Tensor], selection.Key | None]:
        return [target.weight for target in targets], torch.abs
