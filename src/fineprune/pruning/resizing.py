"""Give a model smaller matrices, of some of its heads and neurons, and the sizes that its code reads."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fineprune.pruning.anatomy import Attention, FeedForward, HeadSizes, Lines
from fineprune.pruning.layout import layout_of

Units = NDArray[np.int64]
READERS = ("O", "FFN out")

# The integers that the forward pass of an attention may read. The hidden size is none of them, nor is
# num_key_value_groups, the heads that share a head of K and V, which does not change.
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_GROUPS = ("num_key_value_heads", "num_kv_heads")
_WIDTHS = ("all_head_size", "inner_dim", "split_size")


class Cut(NamedTuple):
    """One attention or feed-forward, and the units that remain of it.

    Attributes:
        half: The attention or feed-forward.
        kept: The numbers of the units that remain, rising.
        zeros: Those of `kept` whose weights and biases become zero.
        added: (outputs,), float64: goes into the bias of the matrix that reads the units.
    """

    half: Attention | FeedForward
    kept: Units
    zeros: Units = np.array([], np.int64)
    added: Tensor | None = None


class Resizing:
    """Changes of a model's modules that can be taken back.

    A changed matrix is a new module. The old ones are kept for `undo`, so nothing else is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._before: list[tuple[nn.Module, str, Any]] = []

    def cut(self, cut: Cut) -> None:
        """Replace the matrices of one half by smaller ones, and set the sizes that its module has."""
        for name, parts in by_matrix(cut.half.lines).items():
            self._replace(name, _smaller(self.model.get_submodule(name), parts, cut))
        if isinstance(cut.half, Attention):
            heads, groups, size = cut.half.sizes
            sizes = HeadSizes(heads // groups * len(cut.kept), len(cut.kept), size)
            for name in attention_modules(cut.half):
                self._set_sizes(self.model.get_submodule(name), cut.half.sizes, sizes)

    def pad(self, half: Attention | FeedForward, full: Attention | FeedForward) -> None:
        """Replace the matrices of one half by those of `full`, whose further units are zero."""
        for name, parts in by_matrix(full.lines).items():
            kept = np.arange(units_of(half))
            self._replace(name, _padded(self.model.get_submodule(name), parts, kept))
        if isinstance(half, Attention) and isinstance(full, Attention):
            for name in attention_modules(half):
                self._set_sizes(self.model.get_submodule(name), half.sizes, full.sizes)

    def fill(self, half: Attention | FeedForward, units: Units, generator: torch.Generator) -> None:
        """Replace the matrices of one half by copies with noise in the lines of some units."""
        for name, parts in by_matrix(half.lines).items():
            self._replace(name, _noisy(self.model.get_submodule(name), parts, units, generator))

    def undo(self) -> None:
        """Take all changes back."""
        for owner, name, value in reversed(self._before):
            setattr(owner, name, value)
        self._before.clear()

    def _replace(self, name: str, module: nn.Module) -> None:
        """Put a module in the place of another, wherever the model has that."""
        old = self.model.get_submodule(name)
        places = [
            (parent, key)
            for parent in self.model.modules()
            for key, child in parent._modules.items()
            if child is old
        ]
        for parent, key in places:
            self._set(parent, key, module)

    def _set_sizes(self, attention: nn.Module, old: HeadSizes, new: HeadSizes) -> None:
        changes = [(_HEADS, old.heads, new.heads), (_GROUPS, old.groups, new.groups)]
        changes.append((_WIDTHS, old.heads * old.size, new.heads * new.size))
        for names, before, after in changes:
            for name in names:
                if getattr(attention, name, None) == before:
                    self._set(attention, name, after)

    def _set(self, owner: nn.Module, name: str, value: Any) -> None:
        self._before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)


def resize(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Give halves of a model their first units only, in place; the model may be on the meta device.

    Args:
        model: the model.
        widths: how many units each half has, by its name in `layout_of`: groups of heads, or neurons.
    """
    resizing = Resizing(model)
    for block in layout_of(model):
        halves: list[Attention | FeedForward] = [*block.attentions, *block.feed_forwards]
        for half in halves:
            if half.name in widths:
                resizing.cut(Cut(half, np.arange(widths[half.name])))


def attention_modules(attention: Attention) -> set[str]:
    """Return the names of the modules that have Q, K and V, and with them the sizes."""
    makers = {part.matrix for part in attention.lines if part.kind not in READERS}
    return {name.rpartition(".")[0] for name in makers}


def by_matrix(lines: Iterable[Lines]) -> dict[str, list[Lines]]:
    """Return the lines of each matrix: a fused one has several parts."""
    matrices: dict[str, list[Lines]] = {}
    for part in lines:
        matrices.setdefault(part.matrix, []).append(part)
    return matrices


def _smaller(module: nn.Module, parts: list[Lines], cut: Cut) -> nn.Module:
    """Return a copy of a linear module with the lines of the kept units alone."""
    axis, reads = parts[0].axis, parts[0].kind in READERS
    positions, units = _of_units(parts, cut.kept)
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    lines = torch.from_numpy(positions).to(weight.device)
    zeros = torch.from_numpy(np.flatnonzero(np.isin(units, cut.zeros))).to(weight.device)
    parameters = {"weight": weight.detach().index_select(axis, lines).index_fill_(axis, zeros, 0)}
    if bias is not None and not reads:
        parameters["bias"] = bias.detach()[lines].index_fill_(0, zeros, 0)
    elif bias is not None and cut.added is not None:
        parameters["bias"] = (bias.detach().double() + cut.added).to(bias.dtype)
    return _with(module, parameters, len(positions), reads)


def _padded(module: nn.Module, parts: list[Lines], kept: Units) -> nn.Module:
    """Return a copy of a linear module with all lines of `parts`: its own for the kept units, else zeros."""
    axis, reads = parts[0].axis, parts[0].kind in READERS
    weight, bias = module.get_parameter("weight").detach(), module._parameters.get("bias")
    lines = torch.from_numpy(_of_units(parts, kept)[0]).to(weight.device)
    shape = list(weight.shape)
    shape[axis] = sum(len(part.positions) for part in parts)
    parameters = {"weight": weight.new_zeros(shape).index_copy_(axis, lines, weight)}
    if bias is not None and not reads:
        parameters["bias"] = bias.detach().new_zeros(shape[axis]).index_copy_(0, lines, bias.detach())
    return _with(module, parameters, shape[axis], reads)


def _of_units(parts: list[Lines], kept: Units) -> tuple[Units, Units]:
    """Return the positions of the kept units' lines in a matrix, rising, and the unit of each."""
    positions = np.concatenate([part.positions for part in parts])
    units = np.concatenate([part.units for part in parts])
    order = np.argsort(positions)
    order = order[np.isin(units[order], kept)]
    return positions[order], units[order]


def units_of(half: Attention | FeedForward) -> int:
    """Return the number of units: groups of heads, or neurons."""
    return half.sizes.groups if isinstance(half, Attention) else half.neurons


def _noisy(module: nn.Module, parts: list[Lines], units: Units, generator: torch.Generator) -> nn.Module:
    weight = module.get_parameter("weight").detach().clone()
    lines = torch.from_numpy(np.concatenate([part.positions[np.isin(part.units, units)] for part in parts]))
    shape = list(weight.shape)
    shape[parts[0].axis] = len(lines)
    noise = torch.randn(shape, generator=generator) / max(weight.shape) ** 0.5
    weight.index_copy_(parts[0].axis, lines.to(weight.device), noise.to(weight))
    return _with(module, {"weight": weight}, None)


def _with(
    module: nn.Module, parameters: Mapping[str, Tensor], lines: int | None, reads: bool = False
) -> nn.Module:
    """Return a copy of a linear module with some new parameters, as trainable as those it had.

    `lines` is the new number of its outputs or, if it reads the units, of its inputs; None: as before.
    """
    copied = copy.copy(module)
    copied._parameters = dict(module._parameters)
    for name, tensor in parameters.items():
        trainable = module.get_parameter(name).requires_grad
        copied._parameters[name] = nn.Parameter(tensor, requires_grad=trainable)
    if lines is not None:
        for name in ("in_features", "nx") if reads else ("out_features", "nf"):  # of Linear, of Conv1D
            if hasattr(module, name):
                setattr(copied, name, lines)
    return copied
