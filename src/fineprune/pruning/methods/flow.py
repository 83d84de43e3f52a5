"""Measures of gradient flow (Lubana and Dick 2021, arXiv:2009.11839), from a gradient averaged over batches.

While training follows -g, the squared norm of the weights changes by -2·Wᵀg, and its second derivative is
2·(|g|² + WᵀHg). The terms of single weights are scores, of larger units their sums:

    loss_preservation |W·g|     biased |W|·|W·g|     norm_preservation |W·Hg|     grasp W·Hg

The last (GraSP) cuts what raises the norm of the gradient; magnitude, the first measure of the frame, is the
method of that name. Hg is a central difference of gradients along g, since fused attention cannot be
differentiated twice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fineprune._messages import choose
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.methods.base import Method, Parts, refuse_frozen
from fineprune.pruning.methods.measured import LEAST_INTERVAL, Measured, sum_over_processes
from fineprune.pruning.methods.soft_movement import FLOOR
from fineprune.pruning.score_rules import order_ties_by_size
from fineprune.pruning.target import Target

_FIRST_ORDER = ("loss_preservation", "biased")
_SECOND_ORDER = ("norm_preservation", "grasp")
_STEP = 1e-3  # of the central difference, as a share of the norm of the weights


@dataclass(frozen=True)
class Options:
    """The options of the measures of gradient flow."""

    measure: Literal["loss_preservation", "biased", "norm_preservation", "grasp"] = "loss_preservation"
    """The measure: see the module."""

    batches: int = 64
    """The mini-batches whose gradients are averaged; measures with H take each three times."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a measure that is not known, or cuts too often for what they cost."""
        choose(self.measure, (*_FIRST_ORDER, *_SECOND_ORDER), "options.measure")
        if isinstance(self.batches, bool) or not isinstance(self.batches, int) or self.batches < 1:
            raise FinepruneError(f"options.batches={self.batches!r}: must be a whole number, at least 1")
        if config.mask_interval < LEAST_INTERVAL:
            raise FinepruneError(
                f"mask_interval={config.mask_interval!r}: a cut of flow costs a pass over options.batches, "
                f"so there must be {LEAST_INTERVAL} steps between two"
            )


class Flow(Method):
    """Cut the weights that a measure of gradient flow ranks lowest."""

    Options = Options

    def parts(self) -> Parts:
        floor = FLOOR if self.scope == "global" else 0.0
        return Parts(FlowMeasure(self.options), floor=floor, check=self._check)

    def _check(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse frozen weights, and a type in which a step of the central difference is lost."""
        refuse_frozen(weights)
        for name, weight in weights.items():
            if self.options.measure in _SECOND_ORDER and weight.dtype.itemsize < 4:
                raise FinepruneError(
                    f"{name}: is {weight.dtype}, too coarse for the differences of gradients of "
                    f"options.measure={self.options.measure!r}; load the model in float32, and train under "
                    "torch.autocast"
                )


class FlowMeasure(Measured):
    """The scores of one measure."""

    def __init__(self, options: Options) -> None:
        self._options = options

    @torch.no_grad()
    def measure(self, targets: Sequence[Target]) -> list[Tensor]:
        measure = self._options.measure
        gradient = self._mean_gradient(targets)
        if measure in _SECOND_ORDER:
            gradient = self._curvature_along(targets, gradient)
        pairs = zip(targets, gradient, strict=True)
        scores = [target.masked.grid.expansion.reduce(target.weight.float() * of) for target, of in pairs]
        if measure != "grasp":
            scores = [score.abs_() for score in scores]
        if measure == "biased":
            scores = [score.mul_(target.size()) for target, score in zip(targets, scores, strict=True)]
        for target, score in zip(targets, scores, strict=True):
            order_ties_by_size(target, score)
        return scores

    def _mean_gradient(self, targets: Sequence[Target]) -> list[Tensor]:
        """Return dL/dW averaged over the batches of all processes."""
        count = torch.zeros((), device=targets[0].weight.device)
        sums = [torch.zeros_like(target.weight, dtype=torch.float32) for target in targets]
        for gradients in self.gradients(targets, self._options.batches):
            for entry, gradient in zip(sums, gradients, strict=True):
                entry.add_(gradient)
            count += 1
        sum_over_processes(count, sums)
        return [entry.div_(count.to(entry.device)) for entry in sums]

    def _curvature_along(self, targets: Sequence[Target], gradient: list[Tensor]) -> list[Tensor]:
        """Return Hg, by the central difference of gradients at W + eps·d and W - eps·d, d = g/|g|."""
        weights = [target.weight for target in targets]
        kept = [torch.where(target.masked.mask, target.weight, 0) for target in targets]
        size, steep = _norm(kept), _norm(gradient)
        if not steep > 0:
            return gradient
        before = [weight.detach().clone() for weight in weights]
        step = _STEP * size / steep
        sides = []
        try:
            for signed in (step, -step):
                for weight, old, along in zip(weights, before, gradient, strict=True):
                    weight.copy_(old + signed * along)
                sides.append(self._mean_gradient(targets))
        finally:
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
        return [(up - down).div_(2 * step) for up, down in zip(*sides, strict=True)]


def _norm(tensors: Sequence[Tensor]) -> float:
    """Return the norm of all entries together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
