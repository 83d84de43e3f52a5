"""The prepared layers of a model, and their end: masks folded into the weights."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import MaskedWeight

DDP_IGNORES = "_ddp_params_and_buffers_to_ignore"  # torch's name for what DDP does not broadcast
MODULES = "_fineprune_modules"  # what a method trains beside the model
FROZEN = "_fineprune_frozen"  # marks a module whose table `prepare` froze and `finalize` thaws


def masked_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, MaskedWeight]]:
    """The prepared layers of a model: dotted name, module and mask, shared modules once."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            first = module.parametrizations["weight"][0]
            if isinstance(first, MaskedWeight):
                yield name, module, first


@torch.no_grad()
def finalize(model: nn.Module) -> nn.Module:
    """Fold the masks into the weights, in place: an ordinary model again, zeros in place.

    Same class, same keys as before `prepare`; scores and masks are gone, and what `prepare`
    froze can be trained again. Returns the model. One that `fully_shard` spread over processes is
    folded where its rows are, by a call of all, and is then to be gathered (`gather_state_dict`), not to be
    run. Raises `FinepruneError` for a model that is not prepared.
    """
    prepared = list(masked_modules(model))
    if not prepared:
        raise FinepruneError(
            "this model was not prepared (or is finalized already): there are no masks to fold"
        )
    ranks.reshard(model)
    ours = set(mask_buffers(model))
    folded: set[int] = set()
    for _, module, masked in prepared:
        original: nn.Parameter = module.parametrizations.weight.original  # type: ignore[union-attr, assignment]
        if id(original) not in folded:  # layers that share one weight share its mask
            folded.add(id(original))
            ranks.local(original).copy_(masked.fold(original))
        # Deep copies share the class that torch made for this module, and it is about to lose its
        # property: give this module a class of its own first.
        shared = type(module)
        own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, own)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    if hasattr(model, MODULES):
        delattr(model, MODULES)
    ignored = [name for name in vars(model).pop(DDP_IGNORES, ()) if name not in ours]
    if ignored:  # the user's
        setattr(model, DDP_IGNORES, ignored)
    for module in model.modules():
        for parameter in getattr(module, FROZEN, ()):
            module.get_parameter(parameter).requires_grad_(True)
        if hasattr(module, FROZEN):
            delattr(module, FROZEN)
    return model


def mask_buffers(model: nn.Module) -> list[str]:
    """The dotted names of masks, and of what else belongs to them."""
    return [
        f"{name}.parametrizations.weight.0.{key}".lstrip(".")
        for name, _, masked in masked_modules(model)
        for key, _ in masked.named_buffers()
    ]
