"""Eq. 2: the parametrization W' = W ⊙ M and its straight-through backward."""

from typing import Any

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.pruning import hard_concrete
from fineprune.pruning.distributed import ranks


class _MaskedProduct(torch.autograd.Function):
    """W' = W ⊙ M, where the mask M takes part in the gradient only through its scores S.

    Both gradients come from the same dL/dW' (Eq. 2): dL/dW = dL/dW' ⊙ M and
    dL/dS = dL/dW' ⊙ W ⊙ f. Straight-through takes f = 1, the selection for the identity; with
    a sampled gate z, M = mask ⊙ z and f is the gate's slope (Eq. 3). Nothing but W, M and z
    is kept for it, since f can be read back from z.
    """

    @staticmethod
    def forward(weight: Tensor, scores: Tensor, mask: Tensor, gate: Tensor | None) -> Tensor:
        product = weight * mask.view(torch.uint8)  # a bool factor takes torch's slow path
        return product if gate is None else product.mul_(gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, mask, gate = inputs
        ctx.scores_dtype = scores.dtype
        ctx.save_for_backward(weight, mask, gate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, mask, gate = ctx.saved_tensors
        to_weight = to_scores = None
        if ctx.needs_input_grad[0]:
            to_weight = gradient * mask.view(torch.uint8)
            if gate is not None:
                to_weight.mul_(gate)
        if ctx.needs_input_grad[1]:
            to_scores = (gradient * weight).to(ctx.scores_dtype)
            if gate is not None:
                to_scores.mul_(hard_concrete.slope(gate))
        return to_weight, to_scores, None, None


class MaskedWeight(nn.Module):
    """A parametrization of one weight: it multiplies by `mask` and, where scores are learned,
    hands them their straight-through gradient.

    `mask` is a bool buffer in the weight's shape, refreshed once an optimizer step by the
    method. `scores` is a float32 parameter in that shape, or None where the score is the weight.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, scores: Tensor | None) -> None:
        super().__init__()
        mask = torch.ones_like(weight, dtype=torch.bool, memory_format=torch.contiguous_format)
        self.register_buffer("mask", mask)
        self.scores = None if scores is None else nn.Parameter(scores)

    def forward(self, weight: Tensor) -> Tensor:
        """W' in the weight's shape and dtype."""
        if self.scores is None:
            return weight * self.mask.view(torch.uint8)
        product: Tensor = _MaskedProduct.apply(  # type: ignore[no-untyped-call]
            weight, self.scores, self.mask, self.gate(weight)
        )
        return product

    def gate(self, weight: Tensor) -> Tensor | None:
        """A factor in [0, 1] beside the mask, in the weight's dtype; None stands for ones."""
        return None

    def kept(self) -> Tensor:
        """Bool, the weight's shape: what the model keeps if training ends now."""
        return self.mask

    @torch.no_grad()
    def fold(self, weight: Tensor) -> Tensor:
        """The weight made permanent: test-time mask applied, exact (positive) zeros elsewhere. Of a sharded
        weight, the rows of this process.
        """
        return torch.where(ranks.rows_like(self.kept(), weight), ranks.local(weight), 0)


class GatedWeight(MaskedWeight):
    """A masked weight whose mask is also a hard-concrete gate: sampled in training, its
    expectation in evaluation. Of several processes each samples from its own generator: the same gates
    where all have the seed and the shapes of batches in common, else its own. Masks are the same on all.
    """

    offset: Tensor

    def __init__(self, weight: Tensor, scores: Tensor) -> None:
        super().__init__(weight, scores)
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32, device=weight.device))

    @property
    def logits(self) -> Tensor:
        """S less the shift that keeps the gates of selected weights open; the rows of this process."""
        assert self.scores is not None
        return ranks.local(self.scores) - self.offset

    @torch.no_grad()
    def gate(self, weight: Tensor) -> Tensor:
        assert self.scores is not None
        gate = hard_concrete.sample if self.training else hard_concrete.expected
        return gate(self.scores.detach() - self.offset).to(weight.dtype)  # both whole in a forward pass

    @torch.no_grad()
    def kept(self) -> Tensor:
        assert self.scores is not None
        if self.scores.dtype.itemsize < 4:  # rounded, gates close that the density keeps
            raise FinepruneError(
                f"the model was cast to {self.scores.dtype} after prepare, and the gates of L0 with it: "
                "finalize it first, then cast"
            )
        return self.mask & ranks.whole_like(self.logits > hard_concrete.CLOSED, self.scores)

    @torch.no_grad()
    def fold(self, weight: Tensor) -> Tensor:
        gate = hard_concrete.expected(self.logits.detach()).to(weight.dtype)
        return torch.where(ranks.rows_like(self.kept(), weight), ranks.local(weight) * gate, 0)
