"""Learning rates over a run: pure functions of the step, and a trainer that follows them.

A shape has no state, so nothing can drift when a run resumes.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from fineprune._messages import choose
from fineprune.errors import FinepruneError
from fineprune.training.host.trainer import PruningTrainer

Shape = Literal["linear", "hold", "cycles", "cosine"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True)
class Plan:
    """How a learning rate goes over a run, as factors of its peak.

    Raises:
        FinepruneError: an unknown shape, or cycles and shares that make no sense.
    """

    shape: Shape = "linear"
    """"linear" falls to the end; "hold" stays at the peak until the pruning has reached its final density, then falls
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
                f"training.warmup={warmup} steps: the first of {self.cycles} cycles has {total // self.cycles}; "
                "give fewer"
            )
        if self.shape == "hold" and warmup + cooldown > total:
            raise FinepruneError(
                f"training.schedule=hold: {warmup} steps of warm-up and {cooldown} at the final density are more "
                f"than the run's {total}; make training.warmup or pruning.cooldown smaller"
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


class RatedTrainer(PruningTrainer):
    """A `PruningTrainer` whose learning rates follow `rates`, in place of `lr_scheduler_type`."""

    def __init__(self, *args: Any, rates: Rates, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rates = rates

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer, and give head, norms and biases groups of their own where their rates differ."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh:
            _split(getattr(optimizer, "optimizer", optimizer), self._peaks())
        return optimizer

    def _peaks(self) -> dict[int, float]:
        """Return the peak rates that differ from the trainer's, by the id of the parameter."""
        rates, model = self._rates, self.model
        scores = (
            set() if self.pruner is None else {id(target.masked.scores) for target in self.pruner.targets}
        )
        peaks: dict[int, float] = {}
        if rates.norms is not None:
            vectors = (entry for entry in model.parameters() if entry.ndim <= 1)
            peaks |= {id(entry): rates.norms for entry in vectors if id(entry) not in scores}
        if rates.head is not None:
            peaks |= {id(entry): rates.head for entry in _head(model)}
        return peaks

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the scheduler of the plans, one function for each group."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            inner = getattr(optimizer, "optimizer", optimizer)
            warmup = self.args.get_warmup_steps(num_training_steps)
            cooldown = (
                round(0.3 * num_training_steps) if self.pruner is None else self.pruner.schedule.cooldown
            )
            scores = (
                set() if self.pruner is None else {id(target.masked.scores) for target in self.pruner.targets}
            )
            plans = [
                self._rates.scores
                if self._rates.scores is not None and any(id(entry) in scores for entry in group["params"])
                else self._rates.plan
                for group in inner.param_groups
            ]
            for plan in plans:
                plan.check(num_training_steps, warmup, cooldown)
            steps = {"total": num_training_steps, "warmup": warmup, "cooldown": cooldown}
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                inner, [functools.partial(plan.factor, **steps) for plan in plans]
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler


def _head(model: Any) -> list[nn.Parameter]:
    """Return the parameters of a model outside its encoder."""
    encoder = {id(entry) for entry in model.base_model.parameters()}
    return [entry for entry in model.parameters() if id(entry) not in encoder]


def _split(optimizer: torch.optim.Optimizer, peaks: dict[int, float]) -> None:
    """Move the parameters that have a peak of their own from each group to groups with that rate."""
    for group in list(optimizer.param_groups):
        for peak in sorted({peaks[id(entry)] for entry in group["params"] if id(entry) in peaks}):
            moved = [entry for entry in group["params"] if peaks.get(id(entry)) == peak]
            group["params"] = [entry for entry in group["params"] if peaks.get(id(entry)) != peak]
            optimizer.add_param_group(group | {"params": moved, "lr": peak})
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
