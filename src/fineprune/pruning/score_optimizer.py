"""What moves the scores: the optimizer of the weights, or one that keeps a half or a quarter as much.

Adam keeps two float32 numbers a score. `adam_bf16` keeps the same two in bfloat16, 4 bytes for 8. `sgd`
keeps one, the momentum, 2 bytes; its step is divided by the root mean square of the matrix's gradient,
a single running number, so that its rate has Adam's scale whatever the model and the loss.

A bfloat16 has 8 bits. Adam's second moment changes by a thousandth a step, which rounding to the
nearest would undo each time: it would stand still for ever. So a number is rounded up or down by an
offset that runs through all of its 65,536 values as the steps go by: over time the roundings average
out, and no random numbers are drawn that a resumed run would have to find again.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fineprune.pruning.distributed.ranks import Shards, local

MARK = "score_optimizer"
"""The key of a parameter group of scores that one of `RULES` moves, with its name."""

_BETAS = (0.9, 0.999)
_STEPS = "score_steps"


def adopt(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer move its marked groups as the group says, and all others as ever, in place.

    It stays one optimizer with one state, so schedulers, clipping and checkpoints need not know.
    """
    kind: Any = type(optimizer)
    optimizer.__class__ = _with_scores(kind)
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # see WithScores
    optimizer._patch_step_function()  # step hooks, as torch sets them up for each class


@functools.cache
def _with_scores(kind: Any) -> Any:
    """Return a subclass of the optimizer class `kind` that leaves marked groups to `RULES`."""

    class WithScores(kind):  # type: ignore[misc]
        param_groups: list[dict[str, Any]]

        # A fused Adam would unscale its own gradients alone, hence no `_step_supports_amp_scaling`.

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            every, weights = self.param_groups, kind.step
            if getattr(weights, "hooked", False):  # torch calls hooks around our step already
                weights = weights.__wrapped__
            self.param_groups = [group for group in every if MARK not in group]
            try:
                weights(self)
            finally:
                self.param_groups = every
            for group in every:
                if MARK in group:
                    group[_STEPS] = group.get(_STEPS, 0) + 1
                    RULES[group[MARK]](group, self.state)
            return loss

        def __setstate__(self, state: dict[str, Any]) -> None:
            every = state["param_groups"]  # what it mends in states of older versions is not in ours
            super().__setstate__(state | {"param_groups": [group for group in every if MARK not in group]})
            self.param_groups = every

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                for score in group["params"] if MARK in group else ():
                    own = self.state.get(score, {})  # torch made float32 of it, as scores are
                    own |= {name: own[name].bfloat16() for name in ("average", "spread") if name in own}

    WithScores.__name__ = WithScores.__qualname__ = kind.__name__
    return WithScores


def _adam_bf16(group: dict[str, Any], states: Any) -> None:
    """Adam (Kingma and Ba 2015) without weight decay."""
    (fast, slow), step = group.get("betas", _BETAS), group[_STEPS]
    for score, gradient, own in _moved(group, states, "average", "spread"):
        average = local(own["average"]).float().lerp_(gradient, 1 - fast)
        spread = local(own["spread"]).float().mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        _store(own["average"], average, step)
        _store(own["spread"], spread, step)
        size = spread.sqrt_().div_(math.sqrt(1 - slow**step)).add_(group.get("eps", 1e-8))
        score.addcdiv_(average, size, value=-group["lr"] / (1 - fast**step))


def _sgd(group: dict[str, Any], states: Any) -> None:
    """SGD with momentum, over the root mean square that the gradient of each matrix has had."""
    (fast, slow), step = group.get("betas", _BETAS), group[_STEPS]
    moved = _moved(group, states, "average")
    if not moved:
        return
    squares = torch.stack([gradient.square().sum().to(moved[0][1].device) for _, gradient, _ in moved])
    shards = Shards.of([own["average"] for *_, own in moved])
    if shards is not None:
        squares = shards.sum(squares)
    for (score, gradient, own), square in zip(moved, squares, strict=True):
        average = local(own["average"]).float().lerp_(gradient, 1 - fast)
        _store(own["average"], average, step)
        mean = square.to(score.device) / own["average"].numel()
        own["square"] = mean * (1 - slow) if "square" not in own else own["square"].lerp(mean, 1 - slow)
        size = (own["square"] / (1 - slow**step)).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        score.sub_(average.mul_(group["lr"] / (1 - fast**step)).div_(size))


RULES: dict[str, Callable[[dict[str, Any], Any], None]] = {"sgd": _sgd, "adam_bf16": _adam_bf16}


def _moved(group: dict[str, Any], states: Any, *names: str) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Scores that have a gradient, both as this process holds them, and their state, made where it is new."""
    found = []
    for score in group["params"]:
        if score.grad is not None:
            own = states[score]
            for name in names:
                if name not in own:
                    own[name] = torch.zeros_like(score, dtype=torch.bfloat16)
            found.append((local(score), local(score.grad), own))
    return found


def _store(place: Tensor, value: Tensor, step: int) -> None:
    """Write float32 as bfloat16, rounded by the offset of the step."""
    offset = step * 40503 % 65536  # the golden ratio of 2^16: odd, so every offset comes once in 65,536
    bits = value.view(torch.int32).add(offset).bitwise_and_(-65536)
    local(place).copy_(bits.view(torch.float32))
