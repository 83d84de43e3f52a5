"""Compare the answers and hidden states of a model that is being changed with those of before."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.pruning.anatomy import Attention, Block, FeedForward
from fineprune.pruning.probe import checked_outputs, difference, outputs, probe_inputs
from fineprune.pruning.resizing import Resizing, Units

Half = Attention | FeedForward

TOLERANCE = 1e-4
"""The largest relative difference of an answer that rounding explains; a wrong removal gives 1e-2 to 1."""

_LENGTHS = (16, 11)  # of the two probe batches


class Proof:
    """The answers of a model before it is changed, to compare later ones with.

    They include the hidden states that each block returns.
    """

    def __init__(self, model: nn.Module, blocks: list[Block], probe: Mapping[str, Tensor] | None) -> None:
        if probe is None and not hasattr(model, "config"):
            raise FinepruneError(
                f"{type(model).__name__} has no config to make inputs from; give some with probe="
            )
        self.model = model
        names = dict.fromkeys(f"{block.stack}.{block.layer}".lstrip(".") for block in blocks)
        self.blocks = [model.get_submodule(name) for name in names]
        self.batches = [_float32(probe)] if probe else [probe_inputs(model, size, size) for size in _LENGTHS]
        self.answers = [checked_outputs(model, batch, self.blocks) for batch in self.batches]
        if not all(bool(tensor.isfinite().all()) for answers in self.answers for tensor in answers):
            raise FinepruneError(
                f"{type(model).__name__} answers the probe with nan or inf: nothing can be proved; give "
                "another one with probe="
            )

    def differs(self) -> float:
        """Return the largest relative difference that the model has now; NaN if the shapes differ."""
        now = [outputs(self.model, batch, self.blocks) for batch in self.batches]
        found = [difference(*pair) for pair in zip(self.answers, now, strict=True)]
        return max(found, key=lambda value: (value != value, value))

    def check_sight(self, what: str, empty: Sequence[tuple[Half, Units]]) -> None:
        """Raise where noise in the empty units changes no answer, for then the probe cannot prove a thing."""
        resizing = Resizing(self.model)
        generator = torch.Generator().manual_seed(0)
        for half, units in empty:
            resizing.fill(half, units, generator)
        try:
            seen = self.differs()
        finally:
            resizing.undo()
        if seen <= TOLERANCE:
            raise FinepruneError(
                f"{what}: noise in those that are to be removed changes the answers by "
                f"{seen:.2g} only, so the probe shows nothing; give another one with probe="
            )


def _float32(probe: Mapping[str, Tensor]) -> dict[str, Tensor]:
    halves = (torch.float16, torch.bfloat16)
    return {
        name: tensor.float() if isinstance(tensor, Tensor) and tensor.dtype in halves else tensor
        for name, tensor in probe.items()
    }
