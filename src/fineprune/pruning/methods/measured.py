"""Scores that are measured on batches of their own before each cut.

The batches come from the loop, by `Pruner.measure_on`; `PruningTrainer` gives rows of the training data. The
model is in evaluation mode meanwhile, no `.grad` changes, and no random number is drawn, so that a resumed
run goes on bit for bit. What is cut never returns, since a masked weight has no gradient to measure.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, distributed, nn

from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement
from fineprune.pruning.methods.base import refuse_frozen
from fineprune.pruning.probe import evaluating
from fineprune.pruning.score_rules import Ranked, ScoreRule
from fineprune.pruning.target import Target

Losses = Callable[[], Iterable[Tensor]]
"""Makes an iterator over the losses of some batches, the same ones each time until the next step."""

LEAST_INTERVAL = 50
"""The fewest steps between two cuts: each costs as much as many steps."""


class Measured(ScoreRule):
    """The score is measured before each cut.

    Attributes:
        losses: Where the losses come from; None until `Pruner.measure_on` was called.
    """

    losses: Losses | None = None
    _model: nn.Module

    def bind(self, model: nn.Module, losses: Losses) -> None:
        """Take the model, and where its losses come from."""
        self._model, self.losses = model, losses

    def start(self, size: Tensor) -> None:
        return None

    def ranked(self, targets: Sequence[Target]) -> Ranked:
        if self.losses is None:
            raise FinepruneError(
                "a cut before the first step has nothing to measure: give a warmup of at least 1 step, or "
                "leave initial_density out"
            )
        scores = self.measure(targets)
        for score, target in zip(scores, targets, strict=True):
            score.masked_fill_(~target.masked.units, torch.finfo(score.dtype).min)
        return Ranked(scores)

    @abstractmethod
    def measure(self, targets: Sequence[Target]) -> list[Tensor]:
        """Return the score of each unit, float32 of the grid's shape; the lowest are cut."""

    def gradients(self, targets: Sequence[Target], most: int) -> Iterator[list[Tensor]]:
        """Yield dL/dW of all targets, float32, for each of `most` batches; each process sees its share.

        Raises:
            FinepruneError: A loss is no tensor, or does not depend on the weights, or a weight is frozen.
        """
        assert self.losses is not None
        refuse_frozen({target.name: target.weight for target in targets})  # since `prepare`
        weights = [target.weight for target in targets]
        processes = distributed.get_world_size() if agreement.several() else 1
        with evaluating(self._model), torch.enable_grad():
            for loss in itertools.islice(self.losses(), -(-most // processes)):
                if not isinstance(loss, Tensor):
                    raise FinepruneError(
                        f"measure_on: a loss is a {type(loss).__name__}, expected a tensor with its graph; "
                        "leave out .item()"
                    )
                if not loss.requires_grad:
                    raise FinepruneError("measure_on: a loss has no gradient to the pruned weights")
                given = torch.autograd.grad(loss, weights, allow_unused=True)
                yield [_float(gradient, weight) for gradient, weight in zip(given, weights, strict=True)]


def _float(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Return a gradient as float32; zeros where the loss did not reach the weight."""
    return torch.zeros_like(like, dtype=torch.float32) if gradient is None else gradient.float()


def sum_over_processes(count: Tensor, tensors: Sequence[Tensor]) -> None:
    """Replace the number of batches, and what they add up to, by the sums over all processes.

    Raises:
        FinepruneError: There was no batch in any; a single process may have none.
    """
    if agreement.several():
        for tensor in (count, *tensors):
            distributed.all_reduce(tensor)
    if not count > 0:
        raise FinepruneError("measure_on: it gave no loss; make it return those of some batches")
