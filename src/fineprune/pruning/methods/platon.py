"""PLATON (Zhang et al. 2022, arXiv:2206.12562) and PINS (Ren and Zhu 2023): sensitivity times uncertainty.

Each step gives a weight the sensitivity I, from the gradient before the optimizer's step: PLATON takes |W·g|,
PINS that of the updated weight, |g·(W - lr·g)|. With the mean I_w over a window of steps, at the end of each
window

    I <- beta1·I + (1 - beta1)·I_w      U <- beta2·U + (1 - beta2)·|I_w - I|      S = I·U,

both averages starting at 0. S is ranked globally. Before the first window ends it is the size of the weight,
which also orders equal scores: so the zeros of a pruned model come last, and a student that is its own
teacher, without a gradient until something is cut, is first cut by magnitude. Weights that are cut are set to
0 and keep their gradients, so that they can come back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fineprune._messages import choose
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.methods.base import Method, Parts, gradual
from fineprune.pruning.schedule import Schedule
from fineprune.pruning.score_rules import Observed, order_ties_by_size
from fineprune.pruning.target import Target


@dataclass(frozen=True)
class Options:
    """The options of PLATON."""

    beta1: float = 0.85
    """Share of the past in the average of the sensitivity, in [0, 1)."""

    beta2: float = 0.95
    """Share of the past in the average of the uncertainty, in [0, 1)."""

    window: int = 10
    """Steps whose mean counts as one; `mask_interval` is a multiple of it."""

    returns: Literal["zero", "kept"] = "zero"
    """What a weight comes back with: "zero" sets cut weights to 0, "kept" leaves them their value."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range, or a `mask_interval` that cuts windows short."""
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise FinepruneError(
                    f"options.{name}={value!r}: must be a number in [0, 1), for example 0.85"
                )
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise FinepruneError(
                f"options.window={self.window!r}: must be a whole number of steps, at least 1"
            )
        if config.mask_interval % self.window:
            raise FinepruneError(
                f"mask_interval={config.mask_interval!r}: must be a multiple of "
                f"options.window={self.window}, at "
                f"whose end the scores change; give mask_interval={self.window}"
            )
        choose(self.returns, ("zero", "kept"), "options.returns")


@dataclass(frozen=True)
class PinsOptions(Options):
    """The options of PINS."""

    beta2: float = 0.99


class Platon(Method):
    """PLATON: cut the weights whose sensitivity is small, and certain to be."""

    Options = Options

    def parts(self) -> Parts:
        return _parts(self.options, of_updated=False)


class Pins(Method):
    """PINS: PLATON with the sensitivity of the weight that the step leads to."""

    Options = PinsOptions

    def parts(self) -> Parts:
        return _parts(self.options, of_updated=True)


def _parts(options: Options, of_updated: bool) -> Parts:
    def plan(config: PruningConfig, total: int) -> Schedule:
        schedule = gradual(config, total)
        last = total - schedule.cooldown
        if last < options.window:  # masks change at the ends of windows, and at the last cut
            raise FinepruneError(
                f"total_steps={total}: the last cut is after {last} steps (cooldown={config.cooldown!r}), "
                f"and {config.method} has no scores before its first window of {options.window} steps "
                "ends; train longer, or give a shorter options.window"
            )
        return schedule

    rule = SensitivityTimesUncertainty(options, of_updated)
    if options.returns == "kept":
        return Parts(rule, weight_gradient="dense", plan=plan)
    return Parts(rule, weight_gradient="dense", plan=plan, after_cut=_set_to_zero)


class SensitivityTimesUncertainty(Observed):
    """The score I·U, from running averages over windows of steps.

    Args:
        options: The options of the method.
        of_updated: Take the sensitivity of the updated weight (PINS).
    """

    def __init__(self, options: Options, of_updated: bool) -> None:
        self._options, self._of_updated = options, of_updated

    def start(self, size: Tensor) -> Tensor:
        return size.clone()

    def statistics(self, size: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(size) for name in ("window_mean", "sensitivity", "uncertainty")}

    @torch.no_grad()
    def observe(self, targets: Sequence[Target], step: int, lr: Callable[[Target], float]) -> None:
        options = self._options
        place = (step - 1) % options.window  # in its window, from 0
        for target in targets:
            if target.scores.grad is None:
                continue
            found = {name: ranks.local(tensor) for name, tensor in target.masked.statistics.items()}
            mean, sensitivity, uncertainty = found.values()
            now = self._sensitivity(target, lr(target))
            mean.lerp_(now, 1 / (place + 1))
            if place + 1 == options.window:
                sensitivity.lerp_(mean, 1 - options.beta1)
                uncertainty.lerp_((mean - sensitivity).abs_(), 1 - options.beta2)
                scores = ranks.local(target.scores)
                torch.mul(sensitivity, uncertainty, out=scores)
                order_ties_by_size(target, scores)

    def _sensitivity(self, target: Target, lr: float) -> Tensor:
        first_order, gradient = target.scores.grad, target.weight.grad
        assert first_order is not None
        first_order = ranks.local(first_order)
        if not self._of_updated or gradient is None:
            return first_order.abs()
        squares = target.masked.grid.expansion.reduce(ranks.local(gradient).float().square())
        return first_order.sub(squares, alpha=lr).abs_()


@torch.no_grad()
def _set_to_zero(targets: Sequence[Target]) -> None:
    for target in targets:
        weight = target.weight
        ranks.local(weight).masked_fill_(~ranks.rows_like(target.masked.mask, weight), 0)
