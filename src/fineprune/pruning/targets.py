"""Find the matrices of a model to prune by its module tree, without a list of models."""

import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from fineprune._messages import near
from fineprune.errors import FinepruneError
from fineprune.pruning.adapters import own_parts


def find_targets(
    model: nn.Module, targets: Iterable[str] | None = None, exclude: Iterable[str] | None = None
) -> dict[str, nn.Module]:
    """Return the linear layers to prune, by dotted name, in the model's order.

    transformers' Conv1D and convolutions of kernel size 1 count as linear. Layers that an adapter of peft
    added are excluded. A module that several places share appears once.

    Args:
        model: the model.
        targets: patterns. Each matches a complete dotted name or any dotted end of it (`query` matches every
            query matrix, `layer.0.*` the first block). None: every linear layer inside the repeated
            transformer blocks, that is, inside the elements of a ModuleList or Sequential that have at least
            two linear layers each; embeddings, poolers and heads are outside of them.
        exclude: patterns of layers to leave out.

    Raises:
        FinepruneError: the model is accelerated or has no such layers, or a pattern has no match.
    """
    refuse_accelerated(model, "load it again, without accelerate")
    added = own_parts(model)
    linear = {n: module for n, module in model.named_modules() if is_linear(module) and module not in added}
    if targets is None:
        layers = {name: linear[name] for name in _inside_blocks(model, linear)}
        if not layers:
            raise FinepruneError(
                f"{type(model).__name__} has no linear layers inside repeated blocks; name the layers to "
                f"prune with targets=[...] (its linear layers: {_some(linear) or 'none'})"
            )
    else:
        layers = _matching("targets", targets, linear)
    if exclude is not None:
        for name in _matching("exclude", exclude, layers):
            del layers[name]
        if not layers:
            raise FinepruneError(f"exclude={list(exclude)!r} leaves nothing to prune; exclude fewer layers")
    return layers


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies each position by one matrix.

    Such are nn.Linear, transformers' Conv1D, and convolutions of kernel size 1, with groups or without.
    """
    return isinstance(module, nn.Linear) or is_transposed(module) or is_pointwise(module)


def is_transposed(module: nn.Module) -> bool:
    """Return whether a linear layer stores its matrix as inputs x outputs, as transformers' Conv1D does."""
    # A model can only have a Conv1D if this process has imported its module; the core does not import it.
    utils = sys.modules.get("transformers.pytorch_utils")
    return utils is not None and isinstance(module, utils.Conv1D)


def is_pointwise(module: nn.Module) -> bool:
    """Return whether a module is a convolution of kernel size 1; its weight is (out, in / groups, 1, ...).

    A convolution that only scales each channel does not count.
    """
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and set(module.kernel_size) == {1}
        and module.in_channels > module.groups
    )


def check_module(model: Any, function: str) -> None:
    """Raise `FinepruneError` if the model that a public function was given is none."""
    if not isinstance(model, nn.Module):
        inside = isinstance(getattr(model, "model", None), nn.Module)
        instead = "; give it the model, pruner.model" if inside else ""
        raise FinepruneError(f"model={type(model).__name__}: {function} takes a torch.nn.Module{instead}")


def refuse_compiled(model: Any) -> None:
    """Raise `FinepruneError` for what `torch.compile` returned: it is not the module that has the layers."""
    if "_orig_mod" in getattr(model, "_modules", ()):
        raise FinepruneError(
            "the model is compiled (torch.compile); give the model itself, compiled._orig_mod, and compile "
            "it afterwards"
        )


def refuse_meta(model: nn.Module) -> None:
    """Raise `FinepruneError` if some weights of a model are not in memory."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FinepruneError("this model has no weights in memory (meta device, or offloaded): load it whole")


def refuse_shared(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `FinepruneError` if a module that gets no zeros has the weight of one that does.

    Args:
        model: The model.
        names: The dotted names of the layers whose weights get zeros; they may share weights.
    """
    pruned = {model.get_submodule(name): name for name in names}
    owners = {id(module.get_parameter("weight")): name for module, name in pruned.items()}
    for other, module in model.named_modules():
        for key, parameter in () if module in pruned else module._parameters.items():
            if id(parameter) in owners:
                name, both = owners[id(parameter)], "choose both, " if is_linear(module) else ""
                raise FinepruneError(
                    f"{name}: its weight is also {f'{other}.{key}'.lstrip('.')}, which is not pruned and "
                    f"would get its zeros; {both}leave the layer out with targets or exclude, or untie the "
                    "two (a copy as nn.Parameter, and in transformers config.tie_word_embeddings=False)"
                )


def refuse_not_finite_matrix(name: str, weight: Tensor) -> None:
    """Raise `FinepruneError` if a matrix, by its name, has weights that cannot be ranked."""
    if wrong := _not_finite(weight):
        raise FinepruneError(
            f"{name}: {wrong:,} of its {weight.numel():,} weights are nan or infinite, and cannot be ranked: "
            "the model is damaged, or its training diverged; load one that is whole, or leave the layer out "
            "with exclude"
        )


def refuse_not_finite(model: nn.Module) -> None:
    """Raise `FinepruneError` if a weight of a model is nan or infinite, as after a training that diverged."""
    for name, parameter in model.named_parameters():
        if wrong := _not_finite(parameter):
            raise FinepruneError(
                f"{name}: {wrong:,} of its {parameter.numel():,} values are nan or infinite, and a file of "
                "it differs from the model by nan: the training diverged; train again with a lower learning "
                "rate; nothing was saved"
            )


def _not_finite(tensor: Tensor) -> int:
    return int((~tensor.detach().isfinite()).sum())


def refuse_accelerated(model: nn.Module, instead: str) -> None:
    """Raise `FinepruneError` if `accelerate` has handed the weights of the model to an engine."""
    if any(getattr(module, "is_accelerated", False) for module in model.modules()):
        raise FinepruneError(f"this model is accelerated, which takes its weights out of it: {instead}")


def refuse_quantized(model: nn.Module) -> None:
    """Raise `FinepruneError` if a matrix of the model is quantized or packed.

    Linear layers with other weights than floats are not refused: the caller may not want to prune them.
    """
    named = {"the model": model} if getattr(model, "is_quantized", False) else {}  # transformers says so
    named |= {name: module for name, module in model.named_modules() if _is_quantized(module)}
    for name, module in named.items():
        raise FinepruneError(
            f"{name} ({type(module).__name__}) is quantized or packed: load it in floating point, prune it, "
            "and quantize what comes out"
        )


def _is_quantized(module: nn.Module) -> bool:
    """Return whether a module has a matrix in bits: quantized by torch, GPTQ or AWQ, or packed by us."""
    tensors = {**module._buffers, **module._parameters}
    weight = tensors.get("weight")
    as_bits = weight is not None and not weight.is_floating_point() and not is_linear(module)
    odd = as_bits or "qweight" in tensors or callable(getattr(type(module), "weight", None))
    return odd and not getattr(module, "is_accelerated", False)  # `refuse_accelerated` has the better message


def repeated_blocks(model: nn.Module) -> list[str]:
    """Return the dotted names of the repeated blocks, in the model's order; one may be inside another."""
    return [
        f"{name}.{index}" if name else f"{index}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and _repeats_blocks(module)
        for index in range(len(module))
    ]


def _inside_blocks(model: nn.Module, linear: Mapping[str, nn.Module]) -> list[str]:
    blocks = tuple(f"{block}." for block in repeated_blocks(model))
    return [name for name in linear if name.startswith(blocks)]


def _repeats_blocks(container: nn.ModuleList | nn.Sequential) -> bool:
    """Return whether all elements are of one class and have two or more linear layers each.

    A Sequential must have several elements, because one with a single element is only a wrapper.
    """
    elements = list(container)
    return (
        len(elements) > isinstance(container, nn.Sequential)
        and len({type(element) for element in elements}) == 1
        and all(sum(map(is_linear, element.modules())) >= 2 for element in elements)
    )


def _matching(what: str, patterns: Iterable[str], modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    matched = set()
    for pattern in patterns:
        hits = [name for name in modules if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not hits:
            ends = {end for name in modules for end in (name, name.rsplit(".", 1)[-1])}
            close = near(pattern, ends) or sorted(ends)[:3]
            raise FinepruneError(
                f"{what}: no linear layer matches {pattern!r}; near names: {', '.join(close)}"
            )
        matched.update(hits)
    return {name: module for name, module in modules.items() if name in matched}


def _some(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:5])
