"""Which matrices of a model are pruned, read off its module tree and from no list of models."""

import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from fineprune._strict import near
from fineprune.errors import FinepruneError


def find_targets(
    model: nn.Module, targets: Iterable[str] | None = None, exclude: Iterable[str] | None = None
) -> dict[str, nn.Module]:
    """The linear layers to prune, by dotted name, in the model's order.

    Without patterns: every linear layer inside the repeated transformer blocks, that is inside
    the elements of a ModuleList or Sequential which hold at least two linear layers each. Embeddings,
    poolers and heads lie outside. A module that several places share appears once. A pattern
    matches a whole dotted name or any dotted end of it (`query` matches every query matrix,
    `layer.0.*` the first block); transformers' Conv1D counts as linear.

    Raises `FinepruneError` for a model without such layers or an accelerated one, and for a pattern without
    match.
    """
    refuse_accelerated(model, "load it again, without accelerate")
    linear = {name: module for name, module in model.named_modules() if is_linear(module)}
    if targets is None:
        found = {name: linear[name] for name in _inside_blocks(model, linear)}
        if not found:
            raise FinepruneError(
                f"{type(model).__name__} has no linear layers inside repeated blocks; name the layers to "
                f"prune with targets=[...] (its linear layers: {_some(linear) or 'none'})"
            )
    else:
        found = _matching("targets", targets, linear)
    if exclude is not None:
        for name in _matching("exclude", exclude, found):
            del found[name]
        if not found:
            raise FinepruneError(f"exclude={list(exclude)!r} leaves nothing to prune; exclude fewer layers")
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by one 2-d weight: nn.Linear, or transformers' Conv1D."""
    # Conv1D can only be in a model whose process has imported it; the core does not import it.
    utils = sys.modules.get("transformers.pytorch_utils")
    return isinstance(module, (nn.Linear, utils.Conv1D) if utils else nn.Linear)


def refuse_accelerated(model: nn.Module, instead: str) -> None:
    """Raise `FinepruneError` for a model whose weights `accelerate` has handed to an engine."""
    if any(getattr(module, "is_accelerated", False) for module in model.modules()):
        raise FinepruneError(f"this model is accelerated, which takes its weights out of it: {instead}")


def _inside_blocks(model: nn.Module, linear: Mapping[str, nn.Module]) -> list[str]:
    blocks = [
        f"{name}.{index}." if name else f"{index}."
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and _repeats_blocks(module)
        for index in range(len(module))
    ]
    return [name for name in linear if name.startswith(tuple(blocks))]


def _repeats_blocks(container: nn.ModuleList | nn.Sequential) -> bool:
    """Elements of one class with two or more linear layers each; a Sequential must repeat them,
    since one of a single element is only a wrapper.
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
