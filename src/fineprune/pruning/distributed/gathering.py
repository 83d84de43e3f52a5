"""The ordinary model behind a training on several processes, as one state dict."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrize

from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import MaskedWeight

_PLACE = "parametrizations.weight."


@torch.no_grad()
def gather_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """What `finalize` would leave, whole and on the CPU, on process 0; on the others an empty dict.

    For a model that `fully_shard` spread over processes, prepared or finalized: a call of all of them.
    The model stays as it is. Masks are folded where the rows are; scores are not gathered. Load it into a
    fresh model: `AutoModel….from_config(model.config).load_state_dict(state)`.
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
        name, found, part = key.partition(_PLACE)
        value: Any = tensor
        mask = masked.get(name) if found else None
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
    """The rows as what `tensor` is: of a sharded one, a shard."""
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
