"""Optimizers of scores with a half or a quarter of Adam's state, inside the optimizer of the weights.

Adam keeps two float32 numbers per score. `adam_bf16` keeps the same two in bfloat16, 4 bytes in place of 8.
`sgd` keeps one, the momentum, 2 bytes; its step is divided by the root mean square of the gradient of the
matrix, a single running number, so that its rate has the scale of Adam's for any model and loss.

A bfloat16 has 8 bits of precision. Adam's second moment changes by a thousandth per step, which rounding to
nearest would undo each time: it would never change. So numbers are rounded up or down by an offset that takes
each of its 65,536 values in turn, step by step. Over time the rounding errors average out, and no random
numbers are drawn that a resumed run would have to reproduce.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fineprune.pruning.distributed.ranks import Shards, local

MARK = "score_optimizer"
"""The key in a parameter group of scores with the name of the rule in `RULES` that updates them."""

OBSERVED = "observed"
"""The mark of scores that stay as they are: a method reads their gradients before the step."""

_BETAS = (0.9, 0.999)
_STEPS = "score_steps"


def adopt(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer update its marked groups by their rules and all others as before, in place.

    It remains one optimizer with one state, so schedulers, clipping and checkpoints need no change.
    """
    kind: Any = type(optimizer)
    optimizer.__class__ = _with_scores(kind)
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # see WithScores
    optimizer._patch_step_function()  # torch sets up step hooks for each class


@functools.cache
def _with_scores(kind: Any) -> Any:
    """Return a subclass of the optimizer class `kind` that leaves marked groups to `RULES`."""

    class WithScores(kind):  # type: ignore[misc]
        param_groups: list[dict[str, Any]]

        # A fused Adam would unscale only its own gradients, hence no `_step_supports_amp_scaling`.

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            groups, weights = self.param_groups, kind.step
            if getattr(weights, "hooked", False):  # torch already calls hooks around our step
                weights = weights.__wrapped__
            self.param_groups = [group for group in groups if MARK not in group]
            try:
                weights(self)
            finally:
                self.param_groups = groups
            for group in groups:
                if MARK in group:
                    group[_STEPS] = group.get(_STEPS, 0) + 1
                    RULES[group[MARK]](group, self.state)
            return loss

        def __setstate__(self, state: dict[str, Any]) -> None:
            groups = state["param_groups"]  # super() repairs states of old versions; ours need none
            super().__setstate__(state | {"param_groups": [group for group in groups if MARK not in group]})
            self.param_groups = groups

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                for score in group["params"] if MARK in group else ():
                    state = self.state.get(score, {})  # torch cast it to float32, the type of scores
                    state |= {name: state[name].bfloat16() for name in ("average", "spread") if name in state}

    WithScores.__name__ = WithScores.__qualname__ = kind.__name__
    return WithScores


def _adam_bf16(group: dict[str, Any], states: Any) -> None:
    """Update scores by Adam (Kingma and Ba 2015) without weight decay."""
    (fast, slow), step = _betas(group), group[_STEPS]
    for score, gradient, state in _moved(group, states, "average", "spread"):
        average = local(state["average"]).float().lerp_(gradient, 1 - fast)
        spread = local(state["spread"]).float().mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        _store(state["average"], average, step)
        _store(state["spread"], spread, step)
        size = spread.sqrt_().div_(math.sqrt(1 - slow**step)).add_(_eps(group))
        score.addcdiv_(average, size, value=-group["lr"] / (1 - fast**step))


def _sgd(group: dict[str, Any], states: Any) -> None:
    """Update scores by SGD with momentum, over the running root mean square of each matrix's gradient."""
    (fast, slow), step = _betas(group), group[_STEPS]
    entries = _moved(group, states, "average")
    if not entries:
        return
    squares = torch.stack([gradient.square().sum().to(entries[0][1].device) for _, gradient, _ in entries])
    shards = Shards.of([state["average"] for *_, state in entries])
    if shards is not None:
        squares = shards.sum(squares)
    for (score, gradient, state), square in zip(entries, squares, strict=True):
        average = local(state["average"]).float().lerp_(gradient, 1 - fast)
        _store(state["average"], average, step)
        mean = square.to(score.device) / state["average"].numel()
        state["square"] = mean * (1 - slow) if "square" not in state else state["square"].lerp(mean, 1 - slow)
        size = (state["square"] / (1 - slow**step)).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        score.sub_(average.mul_(group["lr"] / (1 - fast**step)).div_(size))


def _observed(group: dict[str, Any], states: Any) -> None:
    """Give scores a state where weights have one: torch.distributed.checkpoint wants it of all it loads."""
    for score in group["params"] if states else ():
        states[score].setdefault("step", torch.ones(()))


RULES: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "sgd": _sgd,
    "adam_bf16": _adam_bf16,
    OBSERVED: _observed,
}


def _betas(group: dict[str, Any]) -> tuple[float, float]:
    """Return the decays of the optimizer where it has a pair of them, as Adam; some have three."""
    betas = group.get("betas")
    return betas if isinstance(betas, (tuple, list)) and len(betas) == 2 else _BETAS  # type: ignore[return-value]


def _eps(group: dict[str, Any]) -> float:
    """Return the offset of the optimizer where it is a number; Adafactor's is a pair of others."""
    eps = group.get("eps")
    return eps if isinstance(eps, (int, float)) else 1e-8


def _moved(group: dict[str, Any], states: Any, *names: str) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Return score, gradient and state of each score with a gradient, creating new states.

    Scores and gradients are the rows that this process has.
    """
    entries = []
    for score in group["params"]:
        if score.grad is not None:
            state = states[score]
            for name in names:
                if name not in state:
                    state[name] = torch.zeros_like(score, dtype=torch.bfloat16)
            entries.append((local(score), local(score.grad), state))
    return entries


def _store(place: Tensor, value: Tensor, step: int) -> None:
    """Write float32 values as bfloat16, rounded by the offset of the step."""
    offset = step * 40503 % 65536  # the golden ratio of 2^16: odd, so every offset comes once in 65,536
    bits = value.view(torch.int32).add(offset).bitwise_and_(-65536)
    local(place).copy_(bits.view(torch.float32))
