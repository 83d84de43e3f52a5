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
    """One forward pass with gradients."""

    inputs: Mapping[str, Any]
    outputs: Any


@contextlib.contextmanager
def recorded(module: nn.Module) -> Iterator[list[Pass]]:
    """Collect the forward passes of `module` in the block; those without gradients are left out."""
    passes: list[Pass] = []

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> None:
        if torch.is_grad_enabled():
            passes.append(Pass(kwargs, outputs))

    handle = module.register_forward_hook(record, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
