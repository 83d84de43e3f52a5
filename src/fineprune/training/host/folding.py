"""The ordinary model behind a prepared one, which hosts save and load in their own ways."""

import copy
from typing import Any

import torch
from torch import nn

from fineprune.pruning.finalizing import fold, masked_modules
from fineprune.pruning.masked_weight import MaskedWeight


def is_prepared(model: nn.Module) -> bool:
    """Return whether a model has masks to fold."""
    return any(True for _ in masked_modules(model))


def ordinary_copy(model: Any) -> Any:
    """Return a finalized copy of a prepared model; scores and masks are not copied for it."""
    masks = (module for module in model.modules() if isinstance(module, MaskedWeight))
    shared = [tensor for masked in masks for tensor in _tensors(masked)]
    return fold(copy.deepcopy(model, {id(tensor): tensor for tensor in shared}))


@torch.no_grad()
def take_weights(prepared: nn.Module, ordinary: nn.Module) -> None:
    """Copy all weights of the ordinary model into the prepared one, in place.

    Under the masks the prepared one has zeros then.
    """
    places = {
        f"{name}.weight".lstrip("."): f"{name}.parametrizations.weight.original".lstrip(".")
        for name, _, _ in masked_modules(prepared)
    }
    state = {places.get(key, key): value for key, value in ordinary.state_dict().items()}
    prepared.load_state_dict(state, strict=False)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
