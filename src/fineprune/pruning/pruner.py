"""The life of a pruning: `prepare`, then `Pruner.step` once an optimiser step, then `finalize`."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods import METHODS, Control, Target
from fineprune.pruning.schedule import Schedule
from fineprune.pruning.targets import find_targets

_FROZEN = "_fineprune_frozen"  # marks a module whose table `prepare` froze and `finalize` thaws


def prepare(model: nn.Module, config: PruningConfig, total_steps: int) -> "Pruner":
    """Put scores and masks on the target matrices of `model`, in place.

    `total_steps` counts optimiser steps. The weights become parameters of a new name
    (`X.parametrizations.weight.original`), so build the optimiser afterwards, from
    `Pruner.parameter_groups`. Raises `FinepruneError` where the schedule cannot finish within
    `total_steps`, a pattern matches nothing, or the model is prepared already.
    """
    if not isinstance(model, nn.Module):
        raise FinepruneError(f"model={type(model).__name__}: prepare takes a torch.nn.Module")
    if any(True for _ in masked_modules(model)):
        raise FinepruneError("this model is prepared already: finalize it first, or load it anew")
    schedule = Schedule.plan(total_steps, config.warmup, config.cooldown)
    method = METHODS[config.method](config, schedule)
    found = find_targets(model, config.targets, config.exclude)
    for name, module in found.items():  # all checks first: an error leaves the model as it was
        if not isinstance(module.weight, nn.Parameter) or not module.weight.is_floating_point():
            raise FinepruneError(
                f"{name}: its weight is no floating-point parameter; prune before the model is quantised "
                "or otherwise parametrized, or leave the layer out with exclude"
            )
    targets: list[Target] = []
    by_weight: dict[int, MaskedWeight] = {}
    for name, module in found.items():
        weight = module.get_parameter("weight")
        tied = by_weight.get(id(weight))
        masked = tied or method.masked_weight(weight)
        masked.train(module.training)
        parametrize.register_parametrization(module, "weight", masked, unsafe=True)
        if tied is None:  # layers that share one weight share its mask, and it is counted once
            by_weight[id(weight)] = masked
            targets.append(Target(name, module, masked))
    if config.freeze_embeddings:
        _freeze_embeddings(model)
    return Pruner(model, config, schedule, targets)


class Pruner:
    """Masks, scores and penalty of a prepared model. Made by `prepare`."""

    def __init__(
        self, model: nn.Module, config: PruningConfig, schedule: Schedule, targets: list[Target]
    ) -> None:
        self.model = model
        self.config = config
        self.schedule = schedule
        self.targets = targets
        self.steps_done = 0
        self.changed = 0.0
        """The share of the target weights whose mask the last refresh turned over."""

        self._method = METHODS[config.method](config, schedule)
        self._control = Control()
        self._refresh()

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for an optimiser: weights at `lr`, biases and norms at `lr` without decay, and
        scores at their own rate (`score_lr`) without decay. Frozen parameters are left out.
        """
        scores = {id(target.masked.scores) for target in self.targets}
        groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "scores": []}
        for parameter in self.model.parameters():
            if id(parameter) in scores:
                groups["scores"].append(parameter)
            elif parameter.requires_grad:
                groups["decay" if parameter.ndim > 1 else "no_decay"].append(parameter)
        result: list[dict[str, Any]] = [
            {"params": groups["decay"], "lr": lr, "weight_decay": weight_decay},
            {"params": groups["no_decay"], "lr": lr, "weight_decay": 0.0},
            {"params": groups["scores"], "lr": self.score_lr, "weight_decay": 0.0},
        ]
        return [group for group in result if group["params"]]

    @property
    def score_lr(self) -> float | None:
        """The learning rate of the scores; None where the method learns none."""
        return self.config.score_lr or self.config.traits.score_lr

    def penalty(self) -> Tensor:
        """What to add to the loss: lambda * R(S), a scalar; 0 for methods without a penalty."""
        value = None
        if self._control.lambda_ > 0:
            value = self._method.penalty(self.targets, self._control.lambda_)
        return torch.zeros((), device=self.targets[0].weight.device) if value is None else value

    def step(self) -> None:
        """Count one optimiser step and set the masks of the next forward pass."""
        self.steps_done += 1
        boundaries = (self.schedule.total - self.schedule.cooldown, self.schedule.total)
        if self.steps_done % self.config.mask_interval == 0 or self.steps_done in boundaries:
            self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        masks = [target.masked.mask for target in self.targets]
        before = [mask.clone() for mask in masks]
        self._control = self._method.refresh(self.targets, self.steps_done)
        flipped = sum(int(torch.count_nonzero(old ^ new)) for old, new in zip(before, masks, strict=True))
        self.changed = flipped / sum(mask.numel() for mask in masks)

    @property
    def density(self) -> float:
        """The share of the target weights that the masks of this moment keep."""
        kept = sum(int(torch.count_nonzero(target.masked.kept())) for target in self.targets)
        return kept / sum(target.weight.numel() for target in self.targets)

    @property
    def at_final_density(self) -> bool:
        """Whether the schedule has arrived, so that a state may be compared and kept."""
        return self.schedule.at_final(self.steps_done)

    @property
    def threshold(self) -> float | None:
        """The score at which the last refresh cut (local scope: the mean over matrices); None
        where nothing is cut yet.
        """
        return self._control.threshold

    @property
    def lambda_(self) -> float:
        """The factor of the penalty for the next step."""
        return self._control.lambda_

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs beside the model's own state, as plain values."""
        return {
            "config": self.config.to_dict(),
            "total_steps": self.schedule.total,
            "steps_done": self.steps_done,
            "threshold": self._control.threshold,
            "lambda": self._control.lambda_,
            "changed": self.changed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the model's state, with scores and masks, is loaded apart.

        Raises `FinepruneError` where the state is of another config or length.
        """
        try:
            config = PruningConfig.from_dict(state["config"])
            total, steps_done = int(state["total_steps"]), int(state["steps_done"])
            threshold, lambda_ = state["threshold"], float(state["lambda"])
            changed = float(state["changed"])
        except (KeyError, TypeError, ValueError) as error:
            raise FinepruneError(f"not the state of a pruner: {error} is missing or wrong") from error
        if config != self.config or total != self.schedule.total:
            ours, theirs = self.config.to_dict(), config.to_dict()
            differing = [f"{k}: saved {theirs[k]!r}, now {ours[k]!r}" for k in ours if ours[k] != theirs[k]]
            if total != self.schedule.total:
                differing.append(f"total_steps: saved {total}, now {self.schedule.total}")
            raise FinepruneError(
                f"the saved pruning run is another one ({'; '.join(differing)}); resume with its settings"
            )
        self.steps_done = steps_done
        self._control = Control(threshold, lambda_)
        self.changed = changed


def masked_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, MaskedWeight]]:
    """The prepared layers of a model: dotted name, module and mask, shared modules once."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            first = module.parametrizations["weight"][0]
            if isinstance(first, MaskedWeight):
                yield name, module, first


@torch.no_grad()
def finalize(model: nn.Module) -> nn.Module:
    """Fold the masks into the weights, in place: an ordinary model again, zeros in place.

    Same class, same keys as before `prepare`; scores and masks are gone, and what `prepare`
    froze can be trained again. Returns the model. Raises `FinepruneError` for a model that is
    not prepared.
    """
    prepared = list(masked_modules(model))
    if not prepared:
        raise FinepruneError(
            "this model was not prepared (or is finalized already): there are no masks to fold"
        )
    folded: set[int] = set()
    for _, module, masked in prepared:
        original: nn.Parameter = module.parametrizations.weight.original  # type: ignore[union-attr, assignment]
        if id(original) not in folded:  # layers that share one weight share its mask
            folded.add(id(original))
            original.copy_(masked.fold(original))
        # Deep copies share the class that torch made for this module, and it is about to lose its
        # property: give this module a class of its own first.
        shared = type(module)
        own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, own)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    for module in model.modules():
        for parameter in getattr(module, _FROZEN, ()):
            module.get_parameter(parameter).requires_grad_(True)
        if hasattr(module, _FROZEN):
            delattr(module, _FROZEN)
    return model


def _freeze_embeddings(model: nn.Module) -> None:
    """Stop the training of every embedding table; `finalize` lets it go on."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            module.weight.requires_grad_(False)
            setattr(module, _FROZEN, ("weight",))
