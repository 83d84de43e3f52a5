"""A trainer whose learning rates follow plans, with rates of their own for scores, head and norms."""

import contextlib
import functools
from typing import Any

import torch
from torch import nn

from fineprune.training.host.attention import fused_attention, is_long
from fineprune.training.host.learning_rates import Rates
from fineprune.training.host.trainer import PruningTrainer


class RatedTrainer(PruningTrainer):
    """A `PruningTrainer` whose learning rates follow `rates`, in place of `lr_scheduler_type`."""

    lr_scheduler: Any

    def __init__(self, *args: Any, rates: Rates, fused: bool = False, **kwargs: Any) -> None:
        """Take the rates, and whether long batches and evaluations may leave the model's eager attention."""
        super().__init__(*args, **kwargs)
        self._rates, self._fused = rates, fused
        if self.args.max_steps > 0:
            self._check(self.args.max_steps)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate with random numbers of its own: a run does not depend on when it is evaluated.

        The iterator of every data loader draws one, and dropout and L0 would go on from another place.
        """
        with torch.random.fork_rng(devices=[]), self._attention(True):
            return super().evaluation_loop(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Make a step's gradients, by fused attention where the batch is long enough for it to pay."""
        with self._attention(is_long(inputs)):
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def _attention(self, fused: bool) -> contextlib.AbstractContextManager[None]:
        return fused_attention(self.model) if fused and self._fused else contextlib.nullcontext()

    def _check(self, total: int) -> tuple[int, int]:
        """Return the steps of warm-up and those over which "hold" falls; raise where they do not fit."""
        warmup, pruner = self.args.get_warmup_steps(total), self.pruner
        cooldown = round(0.3 * total) if pruner is None else pruner.schedule.cooldown
        for plan in (self._rates.plan, self._rates.scores):
            if plan is not None:
                plan.check(total, warmup, cooldown)
        return warmup, cooldown

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer, and groups of their own for head, norms and biases where their rates differ."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh:
            _split(getattr(optimizer, "optimizer", optimizer), self._peaks())
        return optimizer

    def _peaks(self) -> dict[int, float]:
        """Return the peak rates that differ from the trainer's, by the id of the parameter."""
        rates, model, scores = self._rates, self.model, self._scores()
        peaks: dict[int, float] = {}
        if rates.norms is not None:
            vectors = (entry for entry in model.parameters() if entry.ndim <= 1)
            peaks |= {id(entry): rates.norms for entry in vectors if id(entry) not in scores}
        if rates.head is not None:
            peaks |= {id(entry): rates.head for entry in _head(model)}
        return peaks

    def _scores(self) -> set[int]:
        """Return the ids of the scores."""
        return set() if self.pruner is None else {id(target.masked.scores) for target in self.pruner.scored}

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the scheduler of the plans, one function for each group."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            inner = getattr(optimizer, "optimizer", optimizer)
            warmup, cooldown = self._check(num_training_steps)
            scores = self._scores()
            plans = [
                self._rates.scores
                if self._rates.scores is not None and any(id(entry) in scores for entry in group["params"])
                else self._rates.plan
                for group in inner.param_groups
            ]
            steps = {"total": num_training_steps, "warmup": warmup, "cooldown": cooldown}
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                inner, [functools.partial(plan.factor, **steps) for plan in plans]
            )
            self._created_lr_scheduler = True
        scheduler: torch.optim.lr_scheduler.LRScheduler = self.lr_scheduler
        return scheduler


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
