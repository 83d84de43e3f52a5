"""PDP (Cho et al. 2023): a soft mask that is a function of the weight, so that no score is learned.

In each matrix t lies half way between the smallest |W| that stays and the largest that goes. While training,

    W' = m·W,  m = sigmoid((W² - t²) / tau),  tau = temperature·t²,

with the gradient of both factors, t being a constant. The share that is cut rises linearly. Evaluation, and
training from the final density on, have the hard mask m >= 1/2, which is Top_v of |W|. tau follows the scale
of the weights, since a fixed one would make the mask hard in one model and leave another dense.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from fineprune._validation import is_number
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.masked_weight import Form
from fineprune.pruning.methods.base import Method, Parts, gradual
from fineprune.pruning.methods.threshold_forms import place_in_the_middle, set_thresholds
from fineprune.pruning.schedule import Schedule
from fineprune.pruning.score_rules import WeightSize

_LARGE = 1e4  # W²/t² beyond which m is 1 anyway; an infinity would make NaN of its slope


@dataclass(frozen=True)
class Options:
    """The options of PDP."""

    temperature: float = 0.1
    """Width of the soft mask as a share of t², greater than 0 and at most 10; the smaller, the harder."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range or of a wrong type."""
        if not is_number(self.temperature) or not 0 < self.temperature <= 10:
            raise FinepruneError(
                f"options.temperature={self.temperature!r}: must be a number in (0, 10], for example 0.1"
            )


class Pdp(Method):
    """PDP: magnitude pruning through a soft mask, at a density that falls linearly."""

    Options = Options

    def parts(self) -> Parts:
        return Parts(
            WeightSize(),
            form=partial(SoftMask, temperature=self.options.temperature),
            set_forms=set_thresholds(self, place_in_the_middle),
            plan=lambda config, total: Linear(*gradual(config, total)),
        )


class Linear(Schedule):
    """A schedule whose density falls linearly."""

    def ramp(self, step: int) -> float:
        x = (step - self.warmup) / (self.total - self.warmup - self.cooldown)
        return min(1.0, max(0.0, x))


class SoftMask(Form):
    """W' = m·W while training, W ⊙ M in evaluation and where the threshold is 0."""

    def __init__(self, weight: Tensor, temperature: float) -> None:
        super().__init__(weight)
        self._temperature = temperature

    def forward(self, weight: Tensor, mask: Tensor) -> Tensor:
        if not self.training:
            return weight * mask.view(torch.uint8)
        return cast(
            Tensor,
            _SoftProduct.apply(weight, mask, self.threshold, self._temperature),  # type: ignore[no-untyped-call]
        )


class _SoftProduct(torch.autograd.Function):
    """m·W, whose factor m is computed again in the backward pass, so that only W and its mask are kept."""

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, threshold: Tensor, temperature: float) -> Tensor:
        _, soft = _soft_mask(weight, mask, threshold, temperature)
        return weight * soft

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, mask, threshold, ctx.temperature = inputs
        ctx.save_for_backward(weight, mask, threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask, threshold = ctx.saved_tensors
        ratio, soft = _soft_mask(weight, mask, threshold, ctx.temperature)
        slope = ratio.mul_(soft).mul_(1 - soft).mul_(2 / ctx.temperature)  # W·dm/dW; 0 where m is 0 or 1
        return gradients[0] * slope.add_(soft), None, None, None


def _soft_mask(weight: Tensor, mask: Tensor, threshold: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return W²/t² and m; m is the hard mask if t is 0."""
    least = torch.finfo(weight.dtype).tiny
    ratio = (weight / threshold.to(weight.dtype).clamp_min(least)).square_().clamp_max_(_LARGE)
    soft = torch.sigmoid((ratio - 1) / temperature)
    return ratio, torch.where(threshold > 0, soft, mask.to(weight.dtype))
