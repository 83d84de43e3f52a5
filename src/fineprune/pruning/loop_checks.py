"""Warn about common mistakes in hand-written training loops."""

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.progress import warn_first
from fineprune.pruning.selection import NotANumberError
from fineprune.pruning.target import Target

UPDATES = 20
"""Steps before a word on calls of `Pruner.step`: a loss scaler skips some of the optimizer's first."""

WITHOUT = 3
"""Optimizer steps in a row whose loss lacked a term, before a warning."""

_watches: weakref.WeakKeyDictionary[nn.Module, "LoopWatch"] = weakref.WeakKeyDictionary()
_hooks: list[Any] = []  # ours in torch's list of hooks of all optimizers, once there is a watch


class Term:
    """Whether a term of the loss takes part in the backward passes of a training."""

    def __init__(self) -> None:
        self.joined = False
        self._missing = 0

    def watch(self, value: Tensor) -> None:
        """Note when a gradient comes back through `value`."""
        if self.joined or torch.compiler.is_compiling():  # a compiled loop keeps no hooks
            self.joined = True
        elif value.requires_grad:
            value.register_hook(self._note)

    def missing(self) -> bool:
        """Return, after an optimizer step that needed the term, whether it is missing for good."""
        self._missing += 1
        missing = not self.joined and self._missing == WITHOUT
        self.joined |= missing  # reported once
        return missing

    def _note(self, gradient: Tensor) -> None:
        self.joined = True


class LoopWatch:
    """Warn, once each, if `Pruner.step` is not called, or scores or penalty are not trained as they must be.

    It looks at each step of the optimizer that has one watched weight, through torch's hook for all
    optimizers, until it knows. Optimizers that are not torch's, and engines that keep copies of the
    parameters, cannot be observed; then there is no warning.
    """

    def __init__(self, config: PruningConfig, score_lr: float | None) -> None:
        """Take the rate of the scores that an optimizer moves; None: there are none."""
        self.steps = 0  # calls of Pruner.step, since this watch began
        self.needs_penalty = False
        self.penalty = Term() if config.traits.takes_penalty else None
        self._score_lr, self._grouped = score_lr, config.score_optimizer == "adam"
        self._updates = 0
        self._rate_known = self._has_scores = score_lr is None
        self._masked: Any = None

    def begin(self, targets: Sequence[Target]) -> None:
        """Watch the first weight that is trained."""
        watched = next((target for target in targets if target.weight.requires_grad), None)
        if watched is not None:
            self._masked = weakref.ref(watched.masked)
            _watches[watched.module] = self  # the module's, not the pruner's, whom the loop may have dropped
            if not _hooks:
                _hooks.append(register_optimizer_step_post_hook(_look))

    def look(self, module: Any, optimizer: torch.optim.Optimizer) -> bool:
        """Look at an optimizer that has just stepped; return whether to go on watching."""
        weight = module.parametrizations.weight if parametrize.is_parametrized(module, "weight") else None
        if weight is None or weight[0] is not self._masked():
            return False  # finalized
        scores = weight[0].scores
        groups = {id(entry): group for group in optimizer.param_groups for entry in group["params"]}
        if id(scores) in groups:
            self._has_scores = True
        if id(weight.original) not in groups:
            return True
        self._updates += 1
        if not self._rate_known and id(scores) in groups:
            self._check_rate(groups[id(weight.original)], groups[id(scores)])
        if self.needs_penalty and self.penalty is not None and self.penalty.missing():
            warn_first(
                f"{WITHOUT} optimizer steps without pruner.penalty() in the loss, though lambda is above 0: "
                "add it before backward(); in a trainer's own compute_loss, return the loss of "
                "super().compute_loss"
            )
        if self._updates == UPDATES:
            self._check_steps()
        return self._updates < UPDATES or not (self.penalty is None or self.penalty.joined)

    def _check_rate(self, of_weight: dict[str, Any], of_scores: dict[str, Any]) -> None:
        assert self._score_lr is not None
        moved, wanted = _rate(of_scores), self._score_lr
        if not moved:  # none yet, at the start of a warm-up
            return
        self._rate_known = True
        if moved == _rate(of_weight) and abs(moved - wanted) > 1e-6 * wanted:
            slow = ", so they hardly move, and the weights that were large stay" if moved < wanted else ""
            groups = "from pruner.parameter_groups(lr=...)" if self._grouped else "by pruner.optimizer(...)"
            remedy = f"build it {groups}, or call pruner.attach(optimizer) before its first step"
            if of_weight is not of_scores and "initial_lr" in of_scores:
                remedy = "give the scheduler a rate for each group, such as max_lr=[…] of OneCycleLR"
            warn_first(
                f"the optimizer moves the scores at the weights' rate, {moved:g}, not at their own, "
                f"{wanted:g}{slow}: {remedy}"
            )

    def _check_steps(self) -> None:
        steps = self.steps
        if not steps:
            warn_first(
                f"{UPDATES} optimizer steps, and pruner.step() was never called: nothing is pruned; call it "
                "after each optimizer.step()"
            )
        elif not UPDATES // 2 < steps < 1.75 * UPDATES:
            warn_first(
                f"{UPDATES} optimizer steps, and pruner.step() was called {steps} times: the schedule counts "
                "these calls; call it once after each optimizer.step()"
            )
        if not self._has_scores:
            warn_first(
                f"{UPDATES} optimizer steps, and the scores have not changed: the optimizer does not have "
                "them, as if it was built before prepare; build it afterwards, by pruner.optimizer(kind, lr) "
                "or from pruner.parameter_groups(lr)"
            )


def refuse_missing(method: str, optimizer: bool, gradients: bool, steps: bool, losses: bool) -> None:
    """Raise `FinepruneError` if a method lacks its optimizer, or gradients, steps or losses that it needs."""
    attach = "call pruner.attach(optimizer) before the first step, or use pruner.optimizer"
    reasons = {
        f"no gradient was shown to it, since its optimizer was not attached; {attach}": optimizer,
        "no gradient was shown to it so far, since its optimizer has not stepped: call pruner.step() after "
        "optimizer.step()": gradients,
        f"it changes the steps of the optimizer, which was not attached; {attach}": steps,
        "it measures before each cut, and was not told on what; call pruner.measure_on(lambda: "
        "(model(**batch).loss for batch in batches)) before the first step": losses,
    }
    for reason, missing in reasons.items():
        if missing:
            raise FinepruneError(f"method={method!r}: {reason}")


def refuse_layouts(targets: Iterable[Target], measuring: str | None) -> None:
    """Raise `FinepruneError` if weights were laid out since `prepare` in a way that masks do not follow.

    Args:
        targets: What has masks.
        measuring: The name of the method, if it measures whole matrices.
    """
    for target in targets:
        if target.weight.shape != target.masked.mask.shape:
            raise FinepruneError(
                f"{target.name}: its shape became {tuple(target.weight.shape)} after prepare, as under "
                "FSDP1 or ZeRO-3; use DDP, or fully_shard (FSDP2: fsdp_config version 2)"
            )
        if not ranks.is_sharded(target.weight):
            continue
        if measuring is not None:
            raise FinepruneError(
                f"method={measuring!r}: it measures whole matrices, which fully_shard spreads over "
                "processes; use DDP"
            )
        if not target.masked.grid.is_elements:
            raise FinepruneError(
                f"{target.name}: a {target.masked.grid.kind} cannot be spread over processes by "
                "fully_shard; use DDP"
            )


@contextlib.contextmanager
def naming_float16(weights: Iterable[Tensor]) -> Iterator[None]:
    """Name the type of the weights where scores become NaN for it."""
    try:
        yield
    except NotANumberError as error:
        if any(weight.dtype == torch.float16 for weight in weights):
            raise FinepruneError(
                "importance scores are NaN, because the weights are float16, too coarse for the steps of "
                "an optimizer: load the model in float32 and train under torch.autocast, or in bfloat16"
            ) from error
        raise


def _look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for module, watch in list(_watches.items()):
        if not watch.look(module, optimizer):
            del _watches[module]


def _rate(group: dict[str, Any]) -> float:
    """Return the learning rate of a group, before what a scheduler makes of it; 0 where it has none."""
    return float(group.get("initial_lr") or group.get("lr") or 0.0)
