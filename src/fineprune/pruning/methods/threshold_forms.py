"""Forms of W' around a threshold of |W|, which st3, pdp and proximal share.

The masks are Top_v of |W|, so their threshold lies between the smallest weight that stays and the largest
that goes. It is set after each refresh of the masks, and is 0 before the first cut. When the final density is
reached W' is folded into W, the threshold becomes 0, and ordinary masked training goes on to the end.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import Form
from fineprune.pruning.methods.base import Method
from fineprune.pruning.target import Target


class _Through(torch.autograd.Function):
    """W' as it is given; W gets all of dL/dW' while the threshold cuts, else what its mask lets through."""

    @staticmethod
    def forward(weight: Tensor, value: Tensor, mask: Tensor, threshold: Tensor) -> Tensor:
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, mask, threshold = inputs
        ctx.save_for_backward(mask, threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mask, threshold = ctx.saved_tensors
        return torch.where(mask | (threshold > 0), gradients[0], 0), None, None, None


class Shrunk(Form):
    """W' is a function of W that pulls weights toward 0, with a straight-through gradient."""

    def forward(self, weight: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.shrunk(weight, mask)
        return cast(Tensor, _Through.apply(weight, value, mask, self.threshold))  # type: ignore[no-untyped-call]

    @abstractmethod
    def shrunk(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return W' for whole rows of the weight; W ⊙ M if the threshold is 0."""

    def folded(self, weight: Tensor, mask: Tensor) -> Tensor:
        return self.shrunk(weight.detach(), mask)

    def hides(self) -> bool:
        return bool(self.threshold > 0)


def toward_zero(weight: Tensor, pull: Tensor, mask: Tensor) -> Tensor:
    """Return sign(W)·max(|W| - pull, 0) where the mask is True, else 0, in the weight's dtype."""
    value = weight.abs().sub_(pull.to(weight.dtype)).clamp_min_(0).copysign_(weight)
    return torch.where(mask, value, 0)


Cut = tuple[Tensor, Tensor]
"""The smallest |W| that stays and the largest that goes, scalars; the second is -inf if none goes."""


def set_thresholds(method: Method, place: Callable[[Sequence[Target], Sequence[Cut]], None]) -> Any:
    """Return what a method gives as `Parts.set_forms`.

    Args:
        method: The method, whose schedule says when W' is folded into W.
        place: Sets the thresholds of the targets from where each of them was cut.
    """

    @torch.no_grad()
    def set_forms(targets: Sequence[Target], steps: int) -> None:
        final = method.schedule.total - method.schedule.cooldown
        if steps < final or (steps == final and isinstance(targets[0].masked.form, Shrunk)):
            place(targets, _cuts(targets, together=method.scope == "global"))
        if steps == final:
            for target in targets:
                form = target.masked.form
                assert form is not None
                if form.hides():
                    ranks.local(target.weight).copy_(target.masked.fold(target.weight))
                form.threshold.zero_()

    return set_forms


def middle(cut: Cut) -> Tensor:
    """Return the threshold half way between what stays and what goes; 0 if nothing goes."""
    least, most = cut
    return torch.where(most >= 0, (least + most) / 2, 0)


def place_in_the_middle(targets: Sequence[Target], cuts: Sequence[Cut]) -> None:
    """Set the threshold of each target half way between what stays and what goes."""
    for target, cut in zip(targets, cuts, strict=True):
        assert target.masked.form is not None
        target.masked.form.threshold.copy_(middle(cut))


def _cuts(targets: Sequence[Target], together: bool) -> list[Cut]:
    """Return where each target was cut, over all processes; one cut for all if they are ranked together."""
    device, ends = targets[0].weight.device, []
    for target in targets:
        size = ranks.local(target.weight).abs().float()
        mask = ranks.rows_like(target.masked.mask, target.weight)
        for inside, sign in ((mask, -1.0), (~mask, 1.0)):
            found = torch.where(inside, sign * size, -torch.inf).flatten()
            ends.append((found.max() if found.numel() else found.new_tensor(-torch.inf)).to(device))
    tops = torch.stack(ends)
    shards = ranks.Shards.of([target.weight for target in targets])
    tops = (tops if shards is None else shards.largest(tops)).view(-1, 2)
    if together:
        tops = tops.amax(0, keepdim=True).expand(len(targets), 2)
    return [(-least, most) for least, most in tops]
