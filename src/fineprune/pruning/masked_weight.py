"""Eq. 2: the parametrization W' = W ⊙ M and its straight-through backward."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.expansion import Expansion, Lines
from fineprune.pruning.followers import Follower
from fineprune.pruning.units import Grid, elements


@dataclass(frozen=True)
class Decayed:
    """dL/dW' ⊙ (M + b(1 - M)): pruned weights get a share b of their gradient.

    Attributes:
        power: b is (1 - x)^power, x being the progress of the pruning from 0 to 1, so that 0 keeps b at 1.
    """

    power: float

    def share(self, ramp: float) -> float:
        """Return b at a `ramp` of the cubic schedule, 1 - (1 - x)^3."""
        share: float = (1.0 - ramp) ** (self.power / 3)  # 0 ** 0 is 1
        return share


WeightGradient = Literal["masked", "dense"] | Decayed
"""What a weight gets of dL/dW': what its mask lets through, all of it, or something between."""


class _MaskedProduct(torch.autograd.Function):
    """W' = W ⊙ M ⊙ z, where the mask M takes part in the gradient only through what stands for its scores.

    Both gradients come from the same dL/dW' (Eq. 2): dL/dW = dL/dW' ⊙ M ⊙ z and dL/dS = dL/dW' ⊙ W, summed
    over each unit. Straight-through takes the selection for the identity. With a gate z the second is dL/dz,
    which the gate carries on to its scores.
    """

    @staticmethod
    def forward(
        weight: Tensor,
        scores: Tensor | None,
        mask: Tensor,
        gate: Tensor | None,
        flow: Tensor | None,
        expansion: Expansion | None,
        given: WeightGradient,
    ) -> Tensor:
        product = weight * mask.view(torch.uint8)  # a bool factor takes torch's slow path
        return product if gate is None else product.mul_(_expanded(gate, expansion))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, mask, gate, flow, ctx.expansion, ctx.given = inputs
        ctx.scores_dtype = None if scores is None else scores.dtype
        ctx.save_for_backward(weight, mask, gate, flow)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, mask, gate, flow = ctx.saved_tensors
        to_weight = to_scores = to_gate = None
        if ctx.needs_input_grad[0]:
            if flow is not None:
                to_weight = torch.where(mask, gradient, gradient * flow.to(gradient.dtype))
            else:
                to_weight = gradient if ctx.given == "dense" else gradient * mask.view(torch.uint8)
            if gate is not None:
                to_weight = to_weight * _expanded(gate, ctx.expansion)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            moved = gradient * weight
            if ctx.expansion is not None:
                moved = ctx.expansion.reduce(moved.to(ctx.scores_dtype))
            if gate is not None:
                to_gate = moved.to(gate.dtype)
            else:
                to_scores = moved.to(ctx.scores_dtype)
        return to_weight, to_scores, None, to_gate, None, None, None


def _expanded(gate: Tensor, expansion: Expansion | None) -> Tensor:
    return gate if expansion is None else expansion.expand(gate)


class Gate(nn.Module, ABC):
    """A factor z in [0, 1] on each weight beside its mask, a function of the weight's score."""

    @abstractmethod
    def forward(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        """Return z of one forward pass in `dtype`, the shape of `scores`, differentiable in them."""

    @abstractmethod
    def expected(self, scores: Tensor) -> Tensor:
        """Return z at test time for the rows in `scores`, float32."""

    @abstractmethod
    def is_open(self, scores: Tensor) -> Tensor:
        """Return where z is not 0 at test time, bool."""

    @abstractmethod
    def follow(self, threshold: float) -> None:
        """Keep the gates of scores above `threshold` open, at which the last selection cut."""


class Form(nn.Module, ABC):
    """How W' is made of W and its mask, in place of W ⊙ M.

    Attributes:
        threshold: Float32 buffer, the size |W| around which weights are cut; at 0 W' is W ⊙ M, and a weight
            gets the gradient that its mask lets through.
    """

    threshold: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float32, device=weight.device))

    @abstractmethod
    def forward(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return W' of one forward pass, in the weight's shape and dtype."""

    def folded(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the values that `finalize` writes where the mask is True, for whole rows of the weight."""
        return weight

    def hides(self) -> bool:
        """Return whether `folded` changes weights that stay, so that checkpoints need them twice."""
        return False


class MaskedWeight(nn.Module):
    """A parametrization of one weight: it multiplies by a mask, and hands scores their straight-through
    gradient.

    Attributes:
        mask: Bool buffer of the weight's shape, refreshed once an optimizer step by the method.
        scores: Float32 parameter with an entry a unit (of elements, the weight's shape); None where the score
            is read off the weight.
        units: Bool buffer with an entry a unit, which `mask` expands; of elements `mask` itself.
        statistics: Float32 tensors like `scores` that a score rule keeps, parameters without gradient, so
            that they are saved and sharded as the scores are.
        form: How W' is made; None: W ⊙ M.
        within: Of an inner level, the masks of the outer one that also decide about this matrix, and which
            of its lines belong to each of their units; None where there is no outer level.
    """

    mask: Tensor

    def __init__(
        self,
        weight: Tensor,
        scores: Tensor | None,
        grid: Grid | None = None,
        gate: Gate | None = None,
        weight_gradient: WeightGradient = "masked",
        statistics: Mapping[str, Tensor] | None = None,
        followers: tuple[Follower, ...] = (),
    ) -> None:
        super().__init__()
        self.grid = grid or elements("", weight)
        self.followers = followers  # in a tuple, which does not make submodules of their modules
        self.weight_gradient: WeightGradient = weight_gradient
        mask = torch.ones_like(weight, dtype=torch.bool, memory_format=torch.contiguous_format)
        self.register_buffer("mask", mask)
        if not self.grid.is_elements:
            flags = torch.ones(self.grid.shape, dtype=torch.bool, device=weight.device)
            self.register_buffer("unit_mask", flags)
        self.scores = None if scores is None else nn.Parameter(scores)
        self.gate = gate
        self.form: Form | None = None
        if isinstance(weight_gradient, Decayed):
            # a buffer, which a checkpoint holds and a compiler does not fix
            self.register_buffer("flow", torch.full((), weight_gradient.share(0.0), device=weight.device))
        for name, tensor in (statistics or {}).items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self._statistics = tuple(statistics or ())
        self.within: tuple[MaskedWeight, Lines] | None = None  # in a tuple, as the followers

    @property
    def units(self) -> Tensor:
        """The flags that a selection writes; call `spread` afterwards."""
        flags: Tensor = self.mask if self.grid.is_elements else self.get_buffer("unit_mask")
        return flags

    @property
    def statistics(self) -> dict[str, Tensor]:
        """The statistics of the score rule, by name."""
        return {name: self.get_parameter(name) for name in self._statistics}

    def spread(self) -> None:
        """Expand the flags of the units to the mask of the weights."""
        if not self.grid.is_elements:
            self.mask.copy_(self.grid.expansion.expand(self.units))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W' in the weight's shape and dtype."""
        if self.form is not None:
            return cast(Tensor, self.form(weight, self.mask))
        flow = self.get_buffer("flow") if isinstance(self.weight_gradient, Decayed) else None
        if self.scores is None and flow is None:
            return weight * self.mask.view(torch.uint8)
        gate = None
        if self.gate is not None and self.scores is not None:
            gate = self.gate(self.scores, weight.dtype)
        expansion = None if self.grid.is_elements else self.grid.expansion
        product: Tensor = _MaskedProduct.apply(  # type: ignore[no-untyped-call]
            weight, self.scores, self.mask, gate, flow, expansion, self.weight_gradient
        )
        return product

    @torch.no_grad()
    def kept(self) -> Tensor:
        """Return what the model keeps if training ends now: bool, the weight's shape."""
        gated = self.gate is not None and self.scores is not None
        kept = self.grid.expansion.expand(self.kept_units()) if gated else self.mask
        if self.within is None:
            return kept
        outer, lines = self.within
        return kept & lines.expand(outer.kept_units())

    @torch.no_grad()
    def alive(self) -> tuple[int, Tensor] | None:
        """Return the axis and the numbers of the lines that an outer level keeps; None where it keeps all."""
        if self.within is None:
            return None
        outer, lines = self.within
        kept = lines.lines(outer.kept_units())
        return None if bool(kept.all()) else (lines.axis, kept.nonzero().squeeze(1))

    @torch.no_grad()
    def kept_units(self) -> Tensor:
        """Return which units the model keeps if training ends now: bool, the grid's shape."""
        if self.gate is None or self.scores is None:
            return self.units
        if self.scores.dtype.itemsize < 4:  # rounded, gates close that the density keeps
            raise FinepruneError(
                f"the model was cast to {self.scores.dtype} after prepare, and the gates of L0 with it: "
                "finalize it first, then cast"
            )
        return self.units & ranks.whole_like(self.gate.is_open(ranks.local(self.scores)), self.scores)

    def kept_weights(self) -> int:
        """Return how many weights of the units, followers included, stay if training ends now."""
        if self.grid.is_elements:
            return int(torch.count_nonzero(self.kept()))
        return int(torch.count_nonzero(self.kept_units())) * self.grid.weights

    @property
    def total_weights(self) -> int:
        """How many weights the units have in all, followers included."""
        return self.units.numel() * self.grid.weights

    @torch.no_grad()
    def fold(self, weight: Tensor) -> Tensor:
        """Return the weight made permanent: the test-time mask applied, exact (positive) zeros elsewhere.

        Of a weight that is spread over processes, these are the rows of this process.
        """
        own, kept = ranks.local(weight), ranks.rows_like(self.kept(), weight)
        if self.form is not None:
            own = self.form.folded(own, kept)
        if self.gate is not None and self.scores is not None:
            expected = self.gate.expected(ranks.local(self.scores.detach())).to(weight.dtype)
            own = own * self.grid.expansion.expand(expected)
        return torch.where(kept, own, 0)

    def hidden(self) -> Tensor:
        """Return which stored weights `fold` does not show: bool, the weight's shape."""
        every = self.gate is not None or (self.form is not None and self.form.hides())
        return torch.ones_like(self.mask) if every else ~self.kept()


def density_of(layers: Iterable[MaskedWeight]) -> float:
    """Return the share of the weights of layers that the current masks keep; shared masks count once."""
    unique = {id(masked): masked for masked in layers}.values()
    return sum(masked.kept_weights() for masked in unique) / sum(masked.total_weights for masked in unique)
