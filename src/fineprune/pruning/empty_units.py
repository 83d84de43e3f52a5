"""Which heads and neurons of a live model are empty, by the weights alone: those that add a constant at most.

Nothing reads them, or what they give does not depend on the input. The constants go into the bias of the
matrix that reads the units.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fineprune.pruning.anatomy import Attention, FeedForward, Kind, Lines
from fineprune_runtime.dead_units import Flags, living_heads

Activation = Callable[[Tensor], Tensor]


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


# By the names that configurations have for them.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_python": functional.gelu,
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), _gelu_tanh),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
_SETTINGS = ("hidden_act", "activation_function", "hidden_activation", "activation", "dense_act_fn")
_NOT_ACTIVATED = (
    ".up_proj",
    ".wi_1",
)  # of a gated feed-forward; where both are in one matrix, its second part


class Emptiness(NamedTuple):
    """Which units of a half are alive, and what the others add to the output of their reader."""

    alive: Flags
    added: Tensor | None
    """(outputs,), float64; None: nothing."""


def activation_of(config: Any) -> Activation | None:
    """Return the activation of the feed-forwards that a configuration names; None if it is not known."""
    names = {getattr(config, setting, None) for setting in _SETTINGS} - {None}
    name = names.pop() if len(names) == 1 else None
    return _ACTIVATIONS.get(name) if isinstance(name, str) else None


@torch.no_grad()
def empty_heads(model: nn.Module, attention: Attention) -> Emptiness:
    """Find the groups of heads that O does not read, or that have no rows of V and so give V's bias.

    The weights of a softmax add up to one: without rows of V a head gives the bias whatever its keys are. A
    head without rows of Q or K is alive.
    """
    sizes = attention.sizes
    groups = sizes.groups
    reader, values = _first(attention.lines, "O"), _first(attention.lines, "V")
    if reader is None or values is None:
        return Emptiness(np.ones(groups, np.bool_), None)
    read = _any_of_group(living_heads(sizes, lines_used(model, reader)), groups)
    given = _any_of_group(living_heads(sizes, None, lines_used(model, values)), groups)
    bias = _bias(model, values).reshape(groups, 1, -1)
    constants = bias.expand(groups, sizes.heads // groups, -1).reshape(-1)
    return _folded(model, reader, read, ~given, constants)


@torch.no_grad()
def empty_neurons(model: nn.Module, forward: FeedForward, activation: Activation | None) -> Emptiness:
    """Find the neurons that FFN-out does not read, or whose value is a constant.

    Args:
        model: the model.
        forward: its feed-forward.
        activation: None if it is not known; then only constants of 0 are found.
    """
    reader = _first(forward.lines, "FFN out")
    inputs = sorted(
        (part for part in forward.lines if part.kind == "FFN in"),
        key=lambda part: part.matrix.endswith(_NOT_ACTIVATED),
    )
    if reader is None or not 1 <= len(inputs) <= 2:
        return Emptiness(np.ones(forward.neurons, np.bool_), None)
    values = [_constants(model, part) for part in inputs]
    unknown = torch.full_like(values[0], math.nan)
    values[0] = unknown if activation is None else activation(values[0])
    constants = math.prod(values[1:], start=values[0])
    for value in values:  # a factor of 0 decides, whatever the other is
        constants = torch.where(value == 0, 0.0, constants)
    return _folded(model, reader, lines_used(model, reader), ~constants.isnan().cpu().numpy(), constants)


def _folded(model: nn.Module, reader: Lines, read: Flags, constant: Flags, values: Tensor) -> Emptiness:
    """Return which units are alive, given which are read and which are constant, with their lines' values.

    Without a bias to take it, a unit whose constant changes the output stays.
    """
    module: Any = model.get_submodule(reader.matrix)
    fold = read & constant
    weight = module.weight.movedim(reader.axis, 0)[torch.from_numpy(reader.positions)]
    wanted = torch.from_numpy(fold[reader.units]).to(weight.device)
    products = weight[wanted].double() * values.to(weight.device)[wanted, None]
    alive = read & ~constant
    if module.bias is None:
        changed = (products != 0).any(dim=1).cpu().numpy()
        alive[reader.units[fold[reader.units]][changed]] = True
        return Emptiness(alive, None)
    return Emptiness(alive, products.sum(dim=0) if len(products) else None)


def _any_of_group(heads: Flags, groups: int) -> Flags:
    flags: Flags = np.logical_or.reduce(heads.reshape(groups, -1), axis=1)
    return flags


def _first(lines: tuple[Lines, ...], kind: Kind) -> Lines | None:
    return next((part for part in lines if part.kind == kind), None)


def lines_used(model: nn.Module, part: Lines) -> Flags:
    """Return whether each line of a part of a matrix has a weight."""
    weight: Tensor = model.get_submodule(part.matrix).weight  # type: ignore[assignment]
    flags: Flags = (weight != 0).any(dim=1 - part.axis).cpu().numpy()
    return flags[part.positions]


def _bias(model: nn.Module, part: Lines) -> Tensor:
    """Return the biases of the lines, as float64 on the CPU; zeros where there are none."""
    module: Any = model.get_submodule(part.matrix)
    bias: Tensor | None = module.bias
    if bias is None:
        return torch.zeros(len(part.positions), dtype=torch.float64)
    return bias.detach().double().cpu()[torch.from_numpy(part.positions)]


def _constants(model: nn.Module, part: Lines) -> Tensor:
    """Return the value of each line whatever the input: its bias if it has no weight, else NaN."""
    return _bias(model, part).masked_fill(torch.from_numpy(lines_used(model, part)), math.nan)
