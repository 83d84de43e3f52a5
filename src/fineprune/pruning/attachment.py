"""The optimizer that a pruner is attached to: there is one, and its steps show the method gradients."""

import gc
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.loop_checks import UPDATES
from fineprune.pruning.score_groups import rates
from fineprune.pruning.score_rules import Observed
from fineprune.pruning.target import Target


class Attachment:
    """Whether, and to which optimizer, a pruner is attached."""

    def __init__(self) -> None:
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._shown = False
        self._waited = 0

    def __deepcopy__(self, memo: Any) -> "Attachment":
        return Attachment()  # a copy of an optimizer has no hooks: torch leaves them out

    @property
    def made(self) -> bool:
        """Whether there was an optimizer, even if it is gone."""
        return self._optimizer is not None

    def is_to(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether it is this optimizer."""
        return self._optimizer is not None and self._optimizer() is optimizer

    def begin(self, optimizer: torch.optim.Optimizer, hooked: bool) -> None:
        """Take the optimizer, whose steps are `hooked` or not."""
        if hooked:  # a fused one would unscale gradients by itself, behind the hooks, and step in vain
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        self._optimizer = weakref.ref(optimizer)

    def refuse_another(self, method: str) -> None:
        """Raise `FinepruneError` if there is an optimizer already, which would step the scores, too."""
        if self._optimizer is None or self._optimizer() is None:
            return
        gc.collect()  # a scheduler and its optimizer hold each other
        if self._optimizer() is not None:  # no variable, which a traceback would keep alive
            raise FinepruneError(
                f"method={method!r}: this pruner is attached to another optimizer already, and two would "
                "take each step twice: of several optimizers attach only the one that has the pruned "
                "weights; to replace it, delete it and its scheduler first"
            )

    @torch.no_grad()
    def observe(
        self, rule: Observed, targets: Sequence[Target], step: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Show a rule the gradients before an optimizer step."""
        if not _only_makes_state(optimizer, targets):
            self._shown = self._shown or any(target.scores.grad is not None for target in targets)
            rule.observe(targets, step, rates(optimizer))
        forget(targets)

    def waited(self) -> bool:
        """Note a call of `Pruner.step`; return whether gradients are overdue."""
        self._waited += not self._shown
        return self._waited > UPDATES


def _only_makes_state(optimizer: torch.optim.Optimizer, targets: Sequence[Target]) -> bool:
    """Return whether a step is none of a training, and would only spoil the scores that were loaded.

    torch.distributed.checkpoint takes one, with rates and gradients of 0, to make the state that it loads.
    """
    if optimizer.state or any(group.get("lr") for group in optimizer.param_groups):
        return False
    gradients = [target.scores.grad for target in targets if target.scores.grad is not None]
    return bool(gradients) and not any(ranks.count_nonzero(gradient) for gradient in gradients)


def forget(targets: Iterable[Target]) -> None:
    """Clear the gradients of scores, which the rule has read."""
    for target in targets:
        target.scores.grad = None


def refuse_others(optimizer: torch.optim.Optimizer, targets: Sequence[Target], method: str) -> None:
    """Raise `FinepruneError` for an optimizer that has not all of the pruned weights that are trained."""
    has = {id(entry) for group in optimizer.param_groups for entry in group["params"]}
    trained = [target for target in targets if target.weight.requires_grad]
    missing = [target.name for target in trained if id(target.weight) not in has]
    if missing:
        raise FinepruneError(
            f"method={method!r}: the optimizer has not all of the pruned weights, {len(missing)} of "
            f"{len(trained)} are not in it, such as {missing[0]}; attach one optimizer that has them all, "
            "freeze the others (requires_grad=False), or leave them out with targets or exclude"
        )
