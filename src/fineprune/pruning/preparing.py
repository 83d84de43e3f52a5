"""Prune a model: `prepare`, then `Pruner.step` once per optimizer step, then `finalize`."""

from collections.abc import Mapping, Sequence
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
    ORDER,
    freeze_body,
    freeze_embeddings,
    mask_buffers,
    masked_modules,
    release,
)
from fineprune.pruning.followers import followers_of
from fineprune.pruning.levels import cover
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods.base import Method
from fineprune.pruning.pruner import Pruner
from fineprune.pruning.structures import check_rounding, governed, grids_of
from fineprune.pruning.target import Target
from fineprune.pruning.targets import (
    check_module,
    find_targets,
    refuse_compiled,
    refuse_meta,
    refuse_not_finite_matrix,
    refuse_quantized,
    refuse_shared,
)
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
            model is prepared, quantized or compiled already or not in memory, a weight of its targets is nan,
            infinite, or that of another module too, or a head or neuron of its `structure` is not where its
            name says. The model is as it was.
    """
    facts = {"total_steps": total_steps}
    if isinstance(config, PruningConfig):
        facts |= config.to_dict()
    agreement.agree(facts, "prepare")
    with agreement.together("prepare"):
        method, matrices, levels = _checked(model, config, total_steps)
        check_ties(model, levels[0], probe)
    try:
        return _attached(model, method, matrices, levels)
    except BaseException:  # the first cut failed, or memory did not suffice
        release(model)
        raise


def _attached(
    model: nn.Module, method: Method, matrices: Mapping[str, nn.Module], levels: Sequence[Mapping[str, Grid]]
) -> Pruner:
    """Put the masks on a model that was checked, make the first cut, and return the pruner."""
    config = method.config
    if not config.traits.trains_weights:
        freeze_body(model)  # before parametrizations rename the weights
    masks = [_masks(model, method, matrices, grids) for grids in levels]
    found = []  # the targets of each level; layers that share one weight share its mask, which counts once
    for by_name in masks:
        first = {id(masked): name for name, masked in reversed(by_name.items())}.values()
        found.append([Target(name, matrices[name], by_name[name]) for name in by_name if name in first])
    *outer, targets = found
    if outer:
        cover(targets, outer[0])
    for by_name in reversed(masks):  # the inner level first: the outer one masks what it gives
        for name, masked in by_name.items():
            masked.train(matrices[name].training)
            if not hasattr(matrices[name], ORDER):
                setattr(matrices[name], ORDER, tuple(matrices[name]._parameters))
            parametrize.register_parametrization(matrices[name], "weight", masked, unsafe=True)
    if config.freeze_embeddings:
        freeze_embeddings(model)
    # Every process sets its own masks; DDP would broadcast those of rank 0 before each forward pass.
    setattr(model, DDP_IGNORES, [*getattr(model, DDP_IGNORES, ()), *mask_buffers(model)])
    modules = method.bundle.modules(model)
    if modules:
        setattr(model, MODULES, nn.ModuleDict(modules))
    return Pruner(model, method, targets, *outer)


def _masks(
    model: nn.Module, method: Method, matrices: Mapping[str, nn.Module], grids: Mapping[str, Grid]
) -> dict[str, MaskedWeight]:
    """Return the parametrization of each weight of a level, not registered yet, by the name of its layer."""
    found: dict[str, MaskedWeight] = {}
    by_weight: dict[int, MaskedWeight] = {}
    for name, grid in grids.items():
        weight = matrices[name].get_parameter("weight")
        if id(weight) not in by_weight:
            by_weight[id(weight)] = method.masked_weight(weight, grid, followers_of(model, grid))
        found[name] = by_weight[id(weight)]
    return found


def _checked(
    model: nn.Module, config: PruningConfig, total_steps: int
) -> tuple[Method, dict[str, nn.Module], list[dict[str, Grid]]]:
    """Return the method, the modules of the matrices and the grids of each level, after all checks."""
    check_module(model, "prepare")
    refuse_compiled(model)
    if not isinstance(config, PruningConfig):
        raise FinepruneError(
            f"config={config!r}: give a PruningConfig, such as PruningConfig('soft_movement', density=0.1)"
        )
    if any(True for _ in masked_modules(model)):
        raise FinepruneError("this model is prepared already: finalize it first, or load it again")
    refuse_quantized(model)
    refuse_meta(model)
    method: Method = method_class(config.method)(config, total_steps)
    matrices = find_targets(model, config.targets, config.exclude)
    for name, module in matrices.items():
        if ranks.is_sharded(module.weight):  # type: ignore[arg-type]
            raise FinepruneError(f"{name}: spread over processes already; call prepare before fully_shard")
        # Quantized weights may call themselves floats, in a class of their own; DTensor is torch's. Of one
        # byte (float8) torch stores floats, and computes nothing.
        ordinary = type(module.weight).__module__.partition(".")[0] == "torch"
        if not (
            ordinary
            and isinstance(module.weight, nn.Parameter)
            and module.weight.is_floating_point()
            and module.weight.dtype.itemsize > 1
        ):
            raise FinepruneError(
                f"{name}: its weight is no floating-point parameter; prune before the model is quantized "
                "or otherwise parametrized, or leave the layer out with exclude"
            )
        refuse_not_finite_matrix(name, module.weight)
    own = method.bundle.units
    if own is None:
        levels = grids_of(model, matrices, config)
        check_rounding(levels[0], config.round_to)
    else:
        levels = [{name: own(name, module.get_parameter("weight")) for name, module in matrices.items()}]
    refuse_shared(model, governed(levels[-1]))  # an inner level is in every matrix of the outer one
    method.bundle.check({name: matrices[name].get_parameter("weight") for name in levels[-1]})
    if config.traits.holds_zeros:
        hold_zeros(model)
        return method, matrices, levels
    adapted = {id(layer.get_base_layer()) for _, layer in adapted_layers(model)}
    for name in governed(levels[-1]):
        if id(matrices[name]) in adapted:
            raise FinepruneError(
                f"{name}: has an adapter, whose updates would fill what {config.method} prunes; leave the "
                "layer out with exclude, or prune without adapters, then train these with method='keep_zeros'"
            )
    return method, matrices, levels
