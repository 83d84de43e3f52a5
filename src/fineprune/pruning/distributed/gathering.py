"""Gather the ordinary model from a training on several processes into one state dict."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrize

from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import MaskedWeight

_INFIX = "parametrizations.weight."


@torch.no_grad()
def gather_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the finalized model, complete and on the CPU, on process 0; {} on the others.

    The model, which may be prepared or finalized, is one that `fully_shard` spread over processes; all of
    them must call this. The model does not change. Each process folds the masks of its own rows; scores are
    not gathered. Load the result into a new model:
    `AutoModel….from_config(model.config).load_state_dict(state)`.
    """
    ranks.reshard(model)
    masked = {
        f"{name}." if name else "": module.parametrizations["weight"][0]
        for name, module in model.named_modules(remove_duplicate=False)
        if parametrize.is_parametrized(module, "weight")
    }
    first = not distributed.is_available() or not distributed.is_initialized() or not distributed.get_rank()
    state = {}
    for key, tensor in model.state_dict().items():
        name, separator, part = key.partition(_INFIX)
        value: Any = tensor
        mask = masked.get(name) if separator else None
        if isinstance(mask, MaskedWeight):
            if part != "original":
                continue
            key, value = f"{name}weight", _like(mask.fold(tensor), tensor)
        if ranks.is_sharded(value):
            value = value.full_tensor()
        if first:
            state[key] = value.detach().cpu().clone()
    return state


def _like(rows: Tensor, tensor: Any) -> Tensor:
    """Return the rows as a tensor of the kind of `tensor`: a shard if that is sharded."""
    if not ranks.is_sharded(tensor):
        return rows
    return type(tensor).from_local(  # type: ignore[no-any-return]
        rows,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
