"""The last batch of an evaluation on several processes, which accelerate fills up with rows from the start.

It drops their answers again, but their losses would count. So each process evaluates its own rows and repeats
the last answer, since what is gathered must have one size.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size


def own_rows(trainer: Trainer, inputs: Mapping[str, Any]) -> int | None:
    """Return how many rows of the batch are this process's to count; None where all or none are."""
    state = trainer.accelerator.gradient_state
    if trainer.args.world_size <= 1 or not state.end_of_dataloader or state.remainder <= 0:
        return None
    rows: int | None = find_batch_size(inputs)
    if rows is None:
        return None
    own = state.remainder - trainer.args.process_index * rows
    return int(own) if 0 < own < rows else None


def first_rows(inputs: Mapping[str, Any], own: int) -> dict[str, Any]:
    """Return the batch cut to its first `own` rows."""
    rows = find_batch_size(inputs)

    def cut(value: Any) -> Any:
        return value[:own] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value

    return {name: cut(value) for name, value in inputs.items()}


def filled(outputs: Any, own: int, rows: int) -> Any:
    """Return answers for `rows` rows, given those for `own`: the last one is repeated."""
    if isinstance(outputs, Tensor):
        if not outputs.ndim or len(outputs) != own:
            return outputs  # not of the rows
        missing = rows - own
        return torch.cat([outputs, outputs[-1:].expand(missing, *outputs.shape[1:])])
    if isinstance(outputs, Mapping):
        parts = {name: filled(value, own, rows) for name, value in outputs.items()}
        return type(outputs)(parts)  # type: ignore[call-arg]
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(filled(value, own, rows) for value in outputs)
    return outputs
