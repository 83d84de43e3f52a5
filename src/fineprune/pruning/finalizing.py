"""Find the prepared layers of a model, and fold their masks into the weights."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from fineprune.errors import FinepruneError
from fineprune.pruning import progress
from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import MaskedWeight, density_of
from fineprune.pruning.target import folded as folded_weight
from fineprune.pruning.targets import check_module

DDP_IGNORES = "_ddp_params_and_buffers_to_ignore"  # torch's name for the list of those that DDP skips
MODULES = "_fineprune_modules"  # the modules that a method trains in addition to the model
ORDER = "_fineprune_order"  # holds the names of a module's parameters in their order before `prepare`
FROZEN = "_fineprune_frozen"  # marks a module whose table `prepare` froze and `finalize` thaws


def masked_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, MaskedWeight]]:
    """Yield dotted name, module and mask of each prepared layer of a model; shared modules once.

    Of two levels it is the mask of the inner one, which knows the outer.
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            first = module.parametrizations["weight"][0]
            if isinstance(first, MaskedWeight):
                yield name, module, first


def finalize(model: nn.Module) -> nn.Module:
    """Fold the masks into the weights, in place, and return the model: an ordinary one with zeros.

    A density that is not the one asked for, because the training took fewer steps than planned, is a
    `FinepruneWarning`.

    It has the class and the keys from before `prepare`; scores and masks are removed, and parameters that
    `prepare` froze are trainable again. If `fully_shard` spread the model over processes, all of them must
    call this. Each folds its own rows, and the model must then be gathered (`gather_state_dict`), not run.

    Raises:
        FinepruneError: the model is not prepared.
    """
    check_module(model, "finalize")
    prepared = list(masked_modules(model))
    if not prepared:
        raise FinepruneError(
            "this model was not prepared (or is finalized already): there are no masks to fold"
        )
    ranks.reshard(model)
    progress.end(model, density_of(masked for _, _, masked in prepared))
    return fold(model)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Do what `finalize` does, for a copy in the middle of a training: without a word on its density."""
    ranks.reshard(model)
    folded: set[int] = set()
    for _, module, masked in masked_modules(model):
        original: nn.Parameter = module.parametrizations.weight.original  # type: ignore[union-attr, assignment]
        if id(original) not in folded:  # layers that share one weight share its mask
            folded.add(id(original))
            ranks.local(original).copy_(folded_weight(module))
            dead = ~masked.kept_units()
            for follower in masked.followers:
                follower.zero(dead)
    return release(model)


def release(model: nn.Module) -> nn.Module:
    """Remove all that `prepare` put on a model, or has begun to, and return it; weights stay as they are."""
    for module in model.modules():
        vars(module).pop(progress.PROGRESS, None)
    ours = set(mask_buffers(model))
    for _, module, _ in list(masked_modules(model)):
        # Deep copies share the class that torch made for this module, and that class will lose its property:
        # first give this module a class that no copy shares.
        shared = type(module)
        attributes = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, attributes)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    if hasattr(model, MODULES):
        delattr(model, MODULES)
    ignored = [name for name in vars(model).pop(DDP_IGNORES, ()) if name not in ours]
    if ignored:  # these were set by the user
        setattr(model, DDP_IGNORES, ignored)
    for module in model.modules():
        if hasattr(module, ORDER):
            _put_in_order(module)
        for parameter in getattr(module, FROZEN, ()):
            module.get_parameter(parameter).requires_grad_(True)
        if hasattr(module, FROZEN):
            delattr(module, FROZEN)
    return model


def _put_in_order(module: nn.Module) -> None:
    """Put the parameters of a module in the order from before `prepare`; torch puts the weight last.

    The state of an optimizer goes by this order.
    """
    before, parameters = vars(module).pop(ORDER, ()), module._parameters
    for name in [*before, *(name for name in parameters if name not in before)]:
        if name in parameters:
            parameters[name] = parameters.pop(name)


def mask_buffers(model: nn.Module) -> list[str]:
    """Return the dotted names of the masks and of the other buffers of `MaskedWeight`."""
    return [
        f"{name}.parametrizations.weight.{key}".lstrip(".")
        for name, module, _ in masked_modules(model)
        for key, _ in module.get_submodule("parametrizations.weight").named_buffers()
    ]


def freeze_body(model: nn.Module) -> None:
    """Freeze all but the head, which lies outside the `base_model` of a transformers model.

    A model without one is all body. `finalize` makes the parameters trainable again.
    """
    body = getattr(model, "base_model", model)
    for module in body.modules():
        own = tuple(name for name, entry in module.named_parameters(recurse=False) if entry.requires_grad)
        if own:
            setattr(module, FROZEN, own)
        for name in own:
            module.get_parameter(name).requires_grad_(False)


def freeze_embeddings(model: nn.Module) -> None:
    """Freeze every embedding table; `finalize` makes them trainable again."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            module.weight.requires_grad_(False)
            setattr(module, FROZEN, ("weight",))
