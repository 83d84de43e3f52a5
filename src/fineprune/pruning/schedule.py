"""The cubic schedule of the density (Eq. 5), as pure functions of the step.

It has no state, so nothing can drift when a run resumes.
"""

import math
from typing import NamedTuple

from fineprune.errors import FinepruneError


class Schedule(NamedTuple):
    """Eq. 5 for one run, in optimizer steps: t_i = `warmup`, t_f = `cooldown`, T = `total`."""

    total: int
    warmup: int
    cooldown: int

    @classmethod
    def plan(cls, total: int, warmup: float | int, cooldown: float | int) -> "Schedule":
        """Return the schedule with shares (floats) resolved to steps.

        Raises:
            FinepruneError: `total` is not a number of steps, or leaves no step to prune in.
        """
        if isinstance(total, bool) or not isinstance(total, int) or total < 1:
            raise FinepruneError(f"total_steps={total!r}: must be the number of optimizer steps, at least 1")
        steps = cls(total, _steps(warmup, total), _steps(cooldown, total))
        if steps.warmup + steps.cooldown >= total:
            raise FinepruneError(
                f"total_steps={total}: the schedule needs at least {_least_total(warmup, cooldown)} steps "
                f"(warmup {warmup!r} is {steps.warmup}, cooldown {cooldown!r} is {steps.cooldown}, and at "
                "least 1 to prune in); train longer, or give warmup and cooldown as smaller shares"
            )
        return steps

    def ramp(self, step: int) -> float:
        """Return the progress of the pruning: 0 until t_i, 1 from T - t_f, and 1 - (1 - x)^3 in between."""
        if step < self.warmup:
            return 0.0
        if step >= self.total - self.cooldown:
            return 1.0
        x = (step - self.warmup) / (self.total - self.warmup - self.cooldown)
        return 1.0 - (1.0 - x) ** 3

    def density(self, step: int, final: float, initial: float = 1.0) -> float:
        """Return the density v(t) of Eq. 5 after `step` optimizer steps: 1 before t_i, `initial` at t_i."""
        if step < self.warmup:
            return 1.0
        return final + (initial - final) * (1.0 - self.ramp(step))

    def at_final(self, step: int) -> bool:
        """Return whether v(t) has reached its final value."""
        return step >= self.total - self.cooldown


def _steps(duration: float | int, total: int) -> int:
    return round(duration * total) if isinstance(duration, float) else duration


def _least_total(warmup: float | int, cooldown: float | int) -> int:
    """Return the smallest number of steps with which `plan` succeeds."""
    fixed = sum(value for value in (warmup, cooldown) if isinstance(value, int))
    share = sum(value for value in (warmup, cooldown) if isinstance(value, float))
    total = max(1, math.floor(fixed / (1 - share)) - 2)  # rounding moves it by a step or two
    while _steps(warmup, total) + _steps(cooldown, total) >= total:
        total += 1
    return total
