"""Edit the configuration of a shrunk model so that its class has the shapes of the model.

Such a model is an ordinary one: it opens anywhere. It needs layers of equal width, and a class that takes the
size of a head where heads are gone: BERT computes it as hidden size / heads.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fineprune.pruning.anatomy import Block

Setting = tuple[str, Any]
_MISSING = object()

_NEURONS = (
    "intermediate_size",
    "ffn_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "d_ff",
    "n_inner",
    "d_inner",
    "hidden_dim",
    "ffn_hidden_size",
)
_HEADS = (
    "num_attention_heads",
    "n_heads",
    "n_head",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
_GROUPS = ("num_key_value_heads", "num_kv_heads")
_SIZES = ("head_dim", "attention_head_size", "head_size", "d_kv")
_TRIED_SIZES = ("head_dim", "attention_head_size")  # some classes read them, their configurations lack them


class Edits:
    """Changes of a model's configuration, in place, that can be taken back.

    Attributes:
        ordinary: Whether the class of the model has its shapes, by the latest `apply`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.ordinary = False
        self._before: list[Setting] = []

    def apply(self, blocks: list[Block]) -> None:
        """Edit the configuration as the blocks' widths ask if the class has these shapes then.

        Otherwise nothing changes. Edits of an earlier call are taken back first.
        """
        self.undo()
        self.ordinary = self._apply(blocks)

    def _apply(self, blocks: list[Block]) -> bool:
        config: Any = getattr(self.model, "config", None)
        if not hasattr(config, "get_text_config"):
            return False
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        for edits in _candidates(config.get_text_config(), blocks):
            tried = copy.deepcopy(config)
            if _set(tried.get_text_config(), edits) and _shapes(type(self.model), tried) == shapes:
                text = config.get_text_config()
                self._before = [(name, getattr(text, name, _MISSING)) for name, _ in edits]
                return _set(text, edits)
        return False

    def undo(self) -> None:
        """Take the edits back."""
        for name, value in self._before:
            config = self.model.config.get_text_config()
            if value is _MISSING:
                delattr(config, name)
            else:
                setattr(config, name, value)
        self._before.clear()


def _candidates(config: Any, blocks: list[Block]) -> Iterator[list[Setting]]:
    """Yield the edits to try, none of which may do; nothing where layers differ in width."""
    attentions = [(block.stack, half.sizes) for block in blocks for half in block.attentions]
    neurons = _by_stack((block.stack, half.neurons) for block in blocks for half in block.feed_forwards)
    heads = _by_stack((stack, sizes.heads) for stack, sizes in attentions)
    groups = _by_stack((stack, sizes.groups) for stack, sizes in attentions)
    sizes = _by_stack((stack, sizes.size) for stack, sizes in attentions)
    edits: dict[str, int] = {}
    for names, widths in ((_NEURONS, neurons), (_HEADS, heads), (_GROUPS, groups)):
        for name in (name for name in names if hasattr(config, name)):
            values = _values(name, widths)
            if len(values) > 1:
                return
            for value in values - {getattr(config, name)}:
                edits[name] = value
    settings: list[Setting] = list(edits.items())
    size = _values("", sizes)
    if not any(name in _HEADS for name in edits) or len(size) != 1:
        yield settings
        return
    of_size = [name for name in _SIZES if hasattr(config, name)]
    for tried in [of_size] if of_size else [[name] for name in _TRIED_SIZES]:
        yield [*settings, *((name, width) for name in tried for width in size)]


def _by_stack(pairs: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
    widths: dict[str, set[int]] = {}
    for stack, width in pairs:
        widths.setdefault(stack, set()).add(width)
    return widths


def _values(name: str, widths: Mapping[str, set[int]]) -> set[int]:
    """Return the widths that a setting stands for: those of one stack, or of all."""
    words = [word for word in ("encoder", "decoder") if name.startswith(f"{word}_")]
    found = [values for stack, values in widths.items() if all(word in stack for word in words)]
    return set[int]().union(*found)


def _set(config: Any, edits: Iterable[Setting]) -> bool:
    try:
        for name, value in edits:
            setattr(config, name, value)
    except (TypeError, ValueError, AttributeError):  # this configuration does not take it
        return False
    return True


def _shapes(kind: type[nn.Module], config: Any) -> dict[str, torch.Size] | None:
    """Return the shapes of a class's tensors under a configuration; None if it does not take that."""
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
    except Exception:  # a class may refuse a configuration, or the device, in any way
        return None
