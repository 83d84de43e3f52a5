"""Prune a model: `prepare`, then `Pruner.step` once per optimizer step, then `finalize`."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from fineprune.config import PruningConfig, method_class
from fineprune.errors import FinepruneError
from fineprune.pruning.adapters import adapted_layers, hold_zeros
from fineprune.pruning.distributed import agreement, ranks
from fineprune.pruning.finalizing import (
    DDP_IGNORES,
    MODULES,
    freeze_body,
    freeze_embeddings,
    mask_buffers,
    masked_modules,
)
from fineprune.pruning.followers import followers_of
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods.base import Method
from fineprune.pruning.pruner import Pruner
from fineprune.pruning.structures import governed, grids_of
from fineprune.pruning.target import Target
from fineprune.pruning.targets import find_targets, refuse_quantized
from fineprune.pruning.ties import check_ties
from fineprune.pruning.units import Grid


def prepare(
    model: nn.Module, config: PruningConfig, total_steps: int, probe: Mapping[str, Any] | None = None
) -> Pruner:
    """Put scores and masks on the target matrices of `model`, in place.

    The weights become parameters of a new name (`X.parametrizations.weight.original`), so build the optimizer
    afterwards, from `Pruner.parameter_groups`.

    Args:
        model: The model.
        config: The method and its settings.
        total_steps: The number of optimizer steps.
        probe: Inputs of the model, by name, for the test that heads and neurons are what they are taken for.
            None: made up from the model's configuration.

    Returns:
        The pruner, whose `step` the training loop calls.

    Raises:
        FinepruneError: The schedule cannot finish within `total_steps`, a pattern matches nothing, or the
            model is prepared or quantized already, or a head or neuron of its `structure` is not
            where its name says.
    """
    facts = {"total_steps": total_steps}
    if isinstance(config, PruningConfig):
        facts |= config.to_dict()
    agreement.agree(facts, "prepare")
    with agreement.together("prepare"):
        method, matrices, grids = _checked(model, config, total_steps)
        check_ties(model, grids, probe)
    if not config.traits.trains_weights:
        freeze_body(model)  # before parametrizations rename the weights
    targets: list[Target] = []
    by_weight: dict[int, MaskedWeight] = {}
    for name, grid in grids.items():
        module = matrices[name]
        weight = module.get_parameter("weight")
        followers = followers_of(model, grid)
        tied = by_weight.get(id(weight))
        masked = tied or method.masked_weight(weight, grid, followers)
        masked.train(module.training)
        parametrize.register_parametrization(module, "weight", masked, unsafe=True)
        if tied is None:  # layers that share one weight share its mask, which counts once
            by_weight[id(weight)] = masked
            targets.append(Target(name, module, masked))
    if config.freeze_embeddings:
        freeze_embeddings(model)
    # Every process sets its own masks; DDP would broadcast those of rank 0 before each forward pass.
    setattr(model, DDP_IGNORES, [*getattr(model, DDP_IGNORES, ()), *mask_buffers(model)])
    modules = method.bundle.modules(model)
    if modules:
        setattr(model, MODULES, nn.ModuleDict(modules))
    return Pruner(model, method, targets)


def _checked(
    model: nn.Module, config: PruningConfig, total_steps: int
) -> tuple[Method, dict[str, nn.Module], dict[str, Grid]]:
    """Return the method, the modules of the matrices and the grids, after all checks of `prepare`."""
    if not isinstance(model, nn.Module):
        raise FinepruneError(f"model={type(model).__name__}: prepare takes a torch.nn.Module")
    if any(True for _ in masked_modules(model)):
        raise FinepruneError("this model is prepared already: finalize it first, or load it again")
    refuse_quantized(model)
    method: Method = method_class(config.method)(config, total_steps)
    matrices = find_targets(model, config.targets, config.exclude)
    for name, module in matrices.items():  # all checks first: an error leaves the model unchanged
        if ranks.is_sharded(module.weight):  # type: ignore[arg-type]
            raise FinepruneError(f"{name}: spread over processes already; call prepare before fully_shard")
        # Quantized weights may call themselves floats, in a class of their own; DTensor is torch's.
        ordinary = type(module.weight).__module__.partition(".")[0] == "torch"
        if not (ordinary and isinstance(module.weight, nn.Parameter) and module.weight.is_floating_point()):
            raise FinepruneError(
                f"{name}: its weight is no floating-point parameter; prune before the model is quantized "
                "or otherwise parametrized, or leave the layer out with exclude"
            )
    own = method.bundle.units
    if own is None:
        grids = grids_of(model, matrices, config)
    else:
        grids = {name: own(name, module.get_parameter("weight")) for name, module in matrices.items()}
    method.bundle.check({name: matrices[name].get_parameter("weight") for name in grids})
    if config.traits.holds_zeros:
        hold_zeros(model)
        return method, matrices, grids
    adapted = {id(layer.get_base_layer()) for _, layer in adapted_layers(model)}
    for name in governed(grids):
        if id(matrices[name]) in adapted:
            raise FinepruneError(
                f"{name}: has an adapter, whose updates would fill what {config.method} prunes; leave the "
                "layer out with exclude, or prune without adapters, then train these with method='keep_zeros'"
            )
    return method, matrices, grids
