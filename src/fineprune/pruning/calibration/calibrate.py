"""Cut a trained model without labels: matrix by matrix, so that each gives nearly the output that it gave."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fineprune._messages import choose
from fineprune.config import METHODS, PruningConfig
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.pruning.adapters import adapted_layers
from fineprune.pruning.calibration import alps, magnitude, sparsegpt, wanda
from fineprune.pruning.calibration.calibrated import Calibrated, CutMatrix
from fineprune.pruning.calibration.layer import Layer
from fineprune.pruning.calibration.moments import Moments, precise
from fineprune.pruning.calibration.passes import Passes
from fineprune.pruning.distributed.ranks import is_sharded
from fineprune.pruning.finalizing import masked_modules
from fineprune.pruning.selection import keep_count
from fineprune.pruning.targets import find_targets, is_pointwise, refuse_quantized, repeated_blocks

CUTS: dict[str, Callable[[Layer, int], Tensor]] = {
    "magnitude": magnitude.cut,
    "wanda": wanda.cut,
    "sparsegpt": sparsegpt.cut,
    "alps": alps.cut,
}
"""The ways to cut a matrix, the fastest first."""

DEFAULT = "alps"


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    density: float = 0.5,
    method: str = DEFAULT,
    targets: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> Calibrated:
    """Cut a trained model to a density without labels and without training, in place.

    Each matrix keeps the same share of its weights. Matrices are cut in the order in which the model uses
    them, and the inputs of each are those that come out of the matrices cut before.

    Args:
        model: A trained model, in float; it becomes an ordinary one with zeros.
        batches: Inputs of the model, such as a data loader's: mappings of its arguments, tuples or tensors.
            Labels are not read. A few hundred texts of the task are enough.
        density: The share of the weights of each matrix that remains, in (0, 1].
        method: "magnitude" and "wanda" choose weights; "sparsegpt" and "alps" correct those that remain.
        targets: Patterns of the linear layers to cut, as in `PruningConfig`.
        exclude: Patterns of layers to leave out.

    Raises:
        FinepruneError: A setting is wrong; the model is prepared, packed or sharded, or carries adapters;
            there are no batches, the model does not take them, they do not reach a matrix, or values are not
            finite. The model is as it was.
    """
    started = time.perf_counter()
    choose(method, CUTS, "method")
    by_size = next(name for name, traits in METHODS.items() if traits.order == 0)
    config = PruningConfig(by_size, density, scope="local", targets=targets, exclude=exclude)  # type: ignore[arg-type]
    matrices = _checked(model, config)
    passes = Passes(model, batches, matrices, repeated_blocks(model))
    before: list[tuple[Tensor, Tensor]] = []
    found, tokens, padded = [], 0, False
    try:
        for modules in _by_weight(matrices, passes.order):
            moments = Moments(model, modules)
            passes.inputs(list(modules), moments.take)
            name, module = next(iter(modules.items()))
            weight = module.get_parameter("weight")
            before.append((weight, weight.detach().clone()))
            layer = _layer(name, module, moments)
            matrix = CUTS[method](layer, keep_count(config.density, weight.numel()))
            _write(module, matrix, name)
            kept = int(torch.count_nonzero(weight))
            found.append(CutMatrix(name, tuple(weight.shape), kept, weight.numel(), layer.error(matrix)))
            tokens, padded = max(tokens, moments.tokens), padded or moments.padded
    except BaseException:
        for weight, values in before:
            weight.copy_(values)
        raise
    finally:
        passes.close()
    _warn(matrices, method, tokens, padded)
    return Calibrated(method, tuple(found), tokens, time.perf_counter() - started)


def _warn(matrices: Mapping[str, nn.Module], method: str, tokens: int, padded: bool) -> None:
    """Warn of batches that say too little of the inputs, or that say what is not there."""
    widest = max(_as_matrix(module).shape[1] for module in matrices.values())
    if tokens < 2 * widest and method != next(iter(CUTS)):
        warnings.warn(
            f"{tokens:,} tokens for matrices of up to {widest:,} inputs: the cut fits these few; give at least "
            f"{2 * widest:,}",
            FinepruneWarning,
            stacklevel=3,
        )
    if padded:
        warnings.warn(
            "padding could not be told from tokens for some matrices, and counts as tokens; batches of texts "
            "of one length have none",
            FinepruneWarning,
            stacklevel=3,
        )


def _by_weight(matrices: Mapping[str, nn.Module], order: Iterable[str]) -> list[dict[str, nn.Module]]:
    """Return the modules of each weight, in an order of their names: some models use one weight twice."""
    groups: dict[int, dict[str, nn.Module]] = {}
    for name in order:
        groups.setdefault(id(matrices[name].get_parameter("weight")), {})[name] = matrices[name]
    return list(groups.values())


def _as_matrix(module: nn.Module) -> Tensor:
    """Return the weight as (outputs, inputs), a view."""
    weight = module.get_parameter("weight").detach()
    if is_pointwise(module):
        return weight.flatten(1)
    return weight if isinstance(module, nn.Linear) else weight.mT  # transformers' Conv1D


def _layer(name: str, module: nn.Module, moments: Moments) -> Layer:
    weight = _as_matrix(module)
    gram = moments.gram.to(weight.device)
    if not bool(gram.isfinite().all()):
        raise FinepruneError(
            f"{name}: what it reads on these batches is nan or infinite; the model is damaged, or its type "
            "too short: load it in float32"
        )
    return Layer(name, weight.to(precise(weight.device)), gram)


def _write(module: nn.Module, matrix: Tensor, name: str) -> None:
    weight = _as_matrix(module)
    values = matrix.to(weight.dtype)
    if not bool(values.isfinite().all()):
        raise FinepruneError(f"{name}: weights are nan or infinite after the cut; load the model in float32")
    weight.copy_(values)


def _checked(model: nn.Module, config: PruningConfig) -> dict[str, nn.Module]:
    """Return the modules to cut, after all checks that need no batch."""
    if not isinstance(model, nn.Module):
        raise FinepruneError(f"model={type(model).__name__}: calibrate takes a torch.nn.Module")
    if any(True for _ in masked_modules(model)):
        raise FinepruneError("this model is prepared for a training: finalize it first, or load it again")
    refuse_quantized(model)
    matrices = find_targets(model, config.targets, config.exclude)
    adapted = {id(layer.get_base_layer()) for _, layer in adapted_layers(model)}
    for name, module in matrices.items():
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
    weights = {id(module.weight): module.get_parameter("weight") for module in matrices.values()}.values()
    there = sum(int(torch.count_nonzero(weight)) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    if there < config.density * total:
        raise FinepruneError(
            f"density={config.density:g}: only {there / total:.2%} of the weights are there; give less than that"
        )
    return matrices
