"""The forward passes of a student during the computation of its loss.

Trainers differ in what their `compute_loss` returns, and some return no outputs. The forward pass of the
module with the head is the same in all of them, so the logits are taken there.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn


class Pass(NamedTuple):
    """One forward pass with gradients: its arguments by name, and its outputs."""

    inputs: Mapping[str, Any]
    outputs: Any


class Recorder:
    """Collects the forward passes of a module.

    It stands in for `forward`, since hooks do not see callers that skip `__call__`, as sentence-transformers
    does. It is one function for all steps, or a compiled model would be compiled again in each.
    """

    def __init__(self, module: nn.Module, hidden: bool = False) -> None:
        """Prepare for a module; with `hidden`, its outputs get the hidden states of all layers."""
        self._module = module
        self._asked = {"output_hidden_states": True} if hidden else {}
        self._passes: list[Pass] = []
        self._forward: Any = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Collect the passes in the block; those without gradients are left out."""
        before = vars(self._module).get("forward")  # of accelerate or trl, for this model alone
        self._forward, self._passes = self._module.forward, []
        self._module.forward = self._record
        try:
            yield
        finally:
            if before is None:
                del self._module.forward
            else:
                self._module.forward = before

    def take(self) -> list[Pass]:
        """Return the passes of the last block, and let go of them."""
        passes, self._passes = self._passes, []
        return passes

    def _record(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        outputs = self._forward(*args, **kwargs | self._asked)
        self._passes.append(Pass(kwargs, outputs))
        return outputs
