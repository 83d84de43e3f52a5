"""Run single linear layers in the engine, for models that it does not run as a whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fineprune.inference.engine_module import EngineModule


class SparseLinear(EngineModule):
    """Replace a linear layer, with the same output in the type of its weight.

    `engine` is called on float32 of shape (tokens, in) and gives (tokens, out).
    """

    weight: Tensor

    def __init__(self, engine: Any, dtype: torch.dtype, trainable: bool) -> None:
        super().__init__(engine, trainable)
        self.dtype = dtype
        # Some models read the type of a layer's weight, to cast what they give it; int8 tells them not to.
        self.register_buffer("weight", torch.empty(0, dtype=torch.int8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (..., out) for `x` (..., in)."""
        return self.apply_engine(x, self._run)

    def _run(self, x: Tensor) -> Tensor:
        rows = torch.from_numpy(self.engine(x.flatten(0, -2).numpy() if x.ndim > 1 else x[None].numpy()))
        return rows.reshape(*x.shape[:-1], rows.shape[-1]).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # As in PackedLinear: the type to answer in follows casts like half().
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"level={self.engine.level}, dtype={self.engine.dtype}, bytes={self.engine.nbytes}"
