"""What a training loop of one's own can forget, and what shows only once it runs."""

import logging
import weakref

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fineprune.pruning.target import Target

UPDATES = 20
"""Optimizer steps after which what is missing is told: a loss scaler skips some of the first."""

_log = logging.getLogger("fineprune")


class LoopWatch:
    """Warns, once each, if the optimizer steps and `Pruner.step` is not called, or the scores do not move.

    It looks on from the gradient of one weight: in-place changes between two backward passes are an
    optimizer step, however many passes that takes. Optimizers that write past autograd, and parameters
    which FSDP puts in place of ours, are not seen, and then nothing is said.
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
        module = weakref.ref(watched.module)  # not the module itself: its weight holds this
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
                "as one that was built before prepare; build it afterwards, by pruner.optimizer(kind, lr) or "
                "from pruner.parameter_groups(lr)",
                UPDATES,
            )
