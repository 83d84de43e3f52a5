"""Warn about common mistakes in hand-written training loops."""

import logging
import weakref

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fineprune.pruning.target import Target

UPDATES = 20
"""Optimizer steps before a warning: a loss scaler skips some of the first steps."""

_log = logging.getLogger("fineprune")


class LoopWatch:
    """Warn, once each, if the optimizer steps without calls of `Pruner.step`, or the scores do not change.

    It observes one weight through a hook on its gradient: a weight that has changed in place between two
    backward passes means an optimizer step, however many passes there are per step. Optimizers that write
    past autograd, and parameters that FSDP puts in place of ours, cannot be observed; then there is no
    warning.
    """

    def __init__(self, targets: list[Target], moved_each_step: bool = True) -> None:
        self.stepped = False
        self._updates = 0
        watched = next((target for target in targets if target.weight.requires_grad), None)
        if watched is None:
            return
        scores = watched.masked.scores if moved_each_step else None
        self._weight = watched.weight._version
        self._scores = None if scores is None else scores._version
        module = weakref.ref(watched.module)  # weak, because the weight of the module refers to this
        self._hook = watched.weight.register_post_accumulate_grad_hook(
            lambda weight: self._look(weight, scores, module())
        )

    def _look(self, weight: Tensor, scores: Tensor | None, module: nn.Module | None) -> None:
        if module is None or not parametrize.is_parametrized(module, "weight"):  # finalized
            self._hook.remove()
            return
        if weight._version == self._weight:
            return
        self._weight, self._updates = weight._version, self._updates + 1
        if self._updates < UPDATES:
            return
        self._hook.remove()
        if not self.stepped:
            _log.warning(
                "%d optimizer steps, and pruner.step() was never called: nothing is pruned; call it after "
                "each optimizer.step()",
                UPDATES,
            )
        if scores is not None and scores.requires_grad and scores._version == self._scores:
            _log.warning(
                "%d optimizer steps, and the scores have not changed: the optimizer does not have them, "
                "as if it was built before prepare; build it afterwards, by pruner.optimizer(kind, lr) or "
                "from pruner.parameter_groups(lr)",
                UPDATES,
            )
