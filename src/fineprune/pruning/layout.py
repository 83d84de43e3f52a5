"""Where the heads and neurons of a live model are: `anatomy` read off its modules."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from fineprune.pruning.anatomy import Block, blocks_of, head_size_of, place_of
from fineprune.pruning.targets import find_targets, is_transposed


class LiveMatrix(NamedTuple):
    """A weight matrix of a live model, by its dotted name and the shape in which it is stored."""

    name: str
    shape: tuple[int, int]
    transposed: bool
    """Whether its rows are the inputs, as in transformers' Conv1D."""


def layout_of(model: nn.Module) -> list[Block]:
    """Return the blocks of a model, with the lines of each head and neuron.

    A matrix that several places share (ALBERT) appears once. The size of a head comes from the attention
    modules where they have one, since hidden size / heads is another in T5, Qwen3 and ViT, and wrong once
    heads are removed.
    """
    matrices = []
    for name, module in find_targets(model).items():
        shape = tuple(_weight(module).shape)
        if len(shape) == 2:
            matrices.append(LiveMatrix(name, (shape[0], shape[1]), is_transposed(module)))
    return blocks_of(matrices, settings_of(model))


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Return the settings of a model's configuration, with the size of a head that its modules have."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    settings: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
    size = _head_size(model)
    return settings if size is None else settings | {"head_dim": size}


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight


def _head_size(model: nn.Module) -> int | None:
    """Return the lines of a head that all attention modules agree on; None where they have none or differ."""
    sizes = {head_size_of(module) for module in _attention_modules(model)} - {None}
    return sizes.pop() if len(sizes) == 1 else None


def _attention_modules(model: nn.Module) -> Iterable[nn.Module]:
    modules = dict(model.named_modules())
    for name in find_targets(model):
        if place_of(name).kind in ("Q", "K", "V", "QKV"):
            yield modules[name.rpartition(".")[0]]
