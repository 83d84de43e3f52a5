"""L0 regularization (Louizos, Welling and Kingma 2018, arXiv:1712.01312)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import Gate
from fineprune.pruning.methods import hard_concrete
from fineprune.pruning.methods.base import Control, Method, Parts, Penalty, mean_over_units
from fineprune.pruning.score_rules import Learned
from fineprune.pruning.target import Target


class L0(Method):
    """L0 regularization with hard-concrete gates, sampled in the forward pass."""

    def parts(self) -> Parts:
        return Parts(
            # The reference's logit; a start from |W| spreads it, the average weight staying there.
            rule=Learned(self.config, hard_concrete.INITIAL, centered=True),
            gate=HardConcrete,
            penalty=ExpectedL0(),
        )


class _Sampled(torch.autograd.Function):
    """z of the logits, whose slope is read back from z (Eq. 3), so that nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, offset: Tensor, dtype: torch.dtype, training: bool) -> Tensor:
        gate = hard_concrete.sample if training else hard_concrete.expected
        z = gate(scores - offset).to(dtype)
        ctx.save_for_backward(z)
        ctx.scores_dtype = scores.dtype
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        return hard_concrete.slope(z).to(ctx.scores_dtype).mul_(gradients[0]), None, None, None


class HardConcrete(Gate):
    """The hard-concrete gate: sampled in training, its expectation in evaluation.

    Several processes each sample from their own generator: the same gates where seed and shapes of batches
        are the same, else each its own. Masks are the same on all.

    Attributes:
        offset: What is taken off the scores, so that the gates of selected weights stay open.
    """

    offset: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32, device=weight.device))

    def forward(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        z: Tensor = _Sampled.apply(scores, self.offset, dtype, self.training)  # type: ignore[no-untyped-call]
        return z

    def logits(self, scores: Tensor) -> Tensor:
        """Return the scores less the offset."""
        return scores - self.offset

    def expected(self, scores: Tensor) -> Tensor:
        return hard_concrete.expected(self.logits(scores))

    def is_open(self, scores: Tensor) -> Tensor:
        return self.logits(scores) > hard_concrete.CLOSED

    def follow(self, threshold: float) -> None:
        # Scores that fell below the closing point would shut gates which the density keeps.
        self.offset.fill_(min(0.0, threshold - hard_concrete.CLOSED - 1e-3))


class ExpectedL0(Penalty):
    """E[L0] as a share of the weights: P(z > 0) averaged in each matrix, then over the matrices.

    Of larger units it is weighed by cost.
    """

    start, end = hard_concrete.INITIAL, hard_concrete.CLOSED

    def value(self, targets: Sequence[Target]) -> Tensor:
        logits = [target.gate.logits(ranks.local(target.scores)) for target in targets]
        return mean_over_units([hard_concrete.open_probability(entry) for entry in logits], targets)

    def fixed(self, targets: Sequence[Target], ramp: float, penalty: float) -> Control:
        return Control(hard_concrete.CLOSED, penalty)  # the threshold stays, lambda is constant
