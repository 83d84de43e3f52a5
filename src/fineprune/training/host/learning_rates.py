"""Learning rates over a run, as pure functions of the step: nothing to save, nothing to drift on resume."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fineprune._messages import choose
from fineprune.errors import FinepruneError

Shape = Literal["linear", "hold", "cycles", "cosine"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True)
class Plan:
    """How a learning rate goes over a run, as factors of its peak.

    Raises:
        FinepruneError: an unknown shape, or cycles and shares that make no sense.
    """

    shape: Shape = "linear"
    """"linear" falls to the end; "hold" stays at the peak until the final density is reached, then falls
    linearly; "cycles" falls linearly and begins again, `cycles` times; "cosine" falls along half a cosine."""

    cycles: int = 1
    """Number of equal parts of "cycles"; the warm-up is in the first."""

    final: float = 0.0
    """The factor at the end of the run, or of each cycle, in [0, 1]."""

    def __post_init__(self) -> None:
        choose(self.shape, SHAPES, "training.schedule")
        if isinstance(self.cycles, bool) or not isinstance(self.cycles, int) or self.cycles < 1:
            raise FinepruneError(f"training.cycles={self.cycles!r}: must be a whole number, at least 1")
        if self.cycles > 1 and self.shape != "cycles":
            raise FinepruneError(
                f"training.cycles={self.cycles!r}: only with training.schedule=cycles, not {self.shape}"
            )
        if (
            isinstance(self.final, bool)
            or not isinstance(self.final, (int, float))
            or not 0 <= self.final <= 1
        ):
            raise FinepruneError(
                f"training.final_lr={self.final!r}: must be a share of the learning rate, in [0, 1]"
            )

    def check(self, total: int, warmup: int, cooldown: int) -> None:
        """Raise `FinepruneError` where a run of `total` steps is too short for the plan."""
        if self.cycles > total:
            raise FinepruneError(f"training.cycles={self.cycles}: the run has {total} steps; give fewer")
        if self.shape == "cycles" and warmup >= total // self.cycles:
            raise FinepruneError(
                f"training.warmup={warmup} steps: the first of {self.cycles} cycles has "
                f"{total // self.cycles}; give fewer"
            )
        if self.shape == "hold" and warmup + cooldown > total:
            raise FinepruneError(
                f"training.schedule=hold: {warmup} steps of warm-up and {cooldown} at the final density "
                f"are more than the run's {total}; make training.warmup or pruning.cooldown smaller"
            )

    def factor(self, step: int, total: int, warmup: int, cooldown: int) -> float:
        """Return the share of the peak with which the optimizer takes its next step.

        Args:
            step: the optimizer steps that are done.
            total: the steps of the run, T.
            warmup: the steps of a linear rise from 0.
            cooldown: the steps over which "hold" falls, t_f.
        """
        if step < warmup:
            return step / warmup
        if self.shape == "hold":
            left = (total - step) / cooldown if cooldown else 1.0
        elif self.shape == "cycles":
            cycle = min(step * self.cycles // total, self.cycles - 1)
            begin, end = (math.ceil(total * part / self.cycles) for part in (cycle, cycle + 1))
            left = (end - step) / (end - max(begin, warmup))
        else:
            left = (total - step) / max(1, total - warmup)
        left = min(1.0, max(0.0, left))
        if self.shape == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * (1 - left)))
        return self.final + (1 - self.final) * left


@dataclass(frozen=True)
class Rates:
    """The learning rates of the groups of a training, beside the peak of the trainer's arguments."""

    plan: Plan = Plan()
    scores: Plan | None = None
    """The plan of the scores; None: that of the weights."""

    head: float | None = None
    """Peak rate of the parameters outside the encoder; None: that of the other weights."""

    norms: float | None = None
    """Peak rate of biases and norms, which are vectors; None: that of the other weights."""
