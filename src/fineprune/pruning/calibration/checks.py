"""What `calibrate` refuses before it reads a batch, and what it warns of afterwards."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.pruning.adapters import adapted_layers
from fineprune.pruning.distributed.ranks import is_sharded
from fineprune.pruning.finalizing import masked_modules
from fineprune.pruning.targets import (
    check_module,
    find_targets,
    is_pointwise,
    refuse_compiled,
    refuse_quantized,
    refuse_shared,
)
from fineprune.structure import ALL, REMOVABLE, parts_of


def checked(model: nn.Module, config: PruningConfig) -> dict[str, nn.Module]:
    """Return the modules that the patterns choose, after all checks that need no batch."""
    check_module(model, "calibrate")
    refuse_compiled(model)
    if any(True for _ in masked_modules(model)):
        raise FinepruneError("this model is prepared for a training: finalize it first, or load it again")
    refuse_quantized(model)
    if len(config.levels) > 1:
        raise FinepruneError(
            f"structure={config.structure!r}: calibrate cuts one level; cut heads and neurons, shrink the "
            "model, and cut elements by another call"
        )
    for part in parts_of(config.structure).values():
        if part.unit != "element" and part.unit not in REMOVABLE:
            raise FinepruneError(
                f"structure={config.structure!r}: calibrate cuts elements, or units that can be removed: "
                "{'attention': 'head', 'feed_forward': 'neuron'}"
            )
        if part.unit == "element" and ALL not in parts_of(config.structure):
            raise FinepruneError(
                f"structure={config.structure!r}: elements of one part are targets=[…] with "
                "structure='element'; cut heads or neurons by another call"
            )
    matrices = find_targets(model, config.targets, config.exclude)
    adapted = {id(layer.get_base_layer()) for _, layer in adapted_layers(model)}
    for name, module in matrices.items():
        _check(name, module, adapted)
    refuse_shared(model, matrices)
    weights = {id(module.weight): module.get_parameter("weight") for module in matrices.values()}.values()
    there = sum(int(torch.count_nonzero(weight)) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    if config.structure == "element" and there < config.density * total:
        raise FinepruneError(
            f"density={config.density:g}: only {there / total:.2%} of the weights are there; give less"
        )
    return matrices


def _check(name: str, module: nn.Module, adapted: set[int]) -> None:
    weight = module.weight
    if not (isinstance(weight, nn.Parameter) and weight.is_floating_point()) or weight.is_meta:
        raise FinepruneError(
            f"{name}: its weight is no floating-point parameter in memory; load the model in floating "
            "point, or leave the layer out with exclude"
        )
    if is_sharded(weight):
        raise FinepruneError(f"{name}: spread over processes; calibrate before fully_shard")
    if id(module) in adapted:
        raise FinepruneError(f"{name}: carries an adapter; merge it (merge_and_unload) before calibrate")
    if is_pointwise(module) and module.groups > 1:  # type: ignore[operator]
        raise FinepruneError(f"{name}: a convolution in groups, which calibrate cannot cut; use exclude")


def warn_of_batches(inputs: int, tokens: int, padded: bool) -> None:
    """Warn of batches that say too little of the inputs, or that say what is not there.

    Args:
        inputs: The inputs of the widest matrix; 0 where they do not matter.
        tokens: The tokens that it saw.
        padded: Whether padding may be among them.
    """
    if tokens < 2 * inputs:
        warnings.warn(
            f"{tokens:,} tokens for matrices of up to {inputs:,} inputs: the cut fits these few; give at "
            f"least {2 * inputs:,}",
            FinepruneWarning,
            stacklevel=4,
        )
    if padded:
        warnings.warn(
            "padding could not be told from tokens for some matrices, and counts as tokens; batches of texts "
            "of one length have none",
            FinepruneWarning,
            stacklevel=4,
        )


def refuse_several_labels(model: nn.Module, batch: Any, method: str) -> None:
    """Raise `FinepruneError` for a model of several labels an example, which softmax cannot draw."""
    several = getattr(getattr(model, "config", None), "problem_type", None) == "multi_label_classification"
    labeled = method == "kwon" and isinstance(batch, Mapping) and batch.get("labels") is not None
    if several and not labeled:
        remedy = "give batches with labels, or use" if method == "kwon" else "use"
        raise FinepruneError(
            f"method={method!r}: draws one class for each example, and this model gives several labels; "
            f"{remedy} method='sparsegpt'"
        )
