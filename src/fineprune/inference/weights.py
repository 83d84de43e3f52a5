"""Read linear layers, dense or packed, from live modules as matrix and bias for the engine."""

import sys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fineprune.checkpoint.packing import PackedLinear
from fineprune_runtime import codec
from fineprune_runtime.layers import Linear, Matrix


class LinearPlace(NamedTuple):
    """One place of a module: it is `getattr(parent, name)`, and `dotted` is its name in the model."""

    parent: nn.Module
    name: str
    dotted: str


def linear_of(module: nn.Module) -> Linear:
    """Return matrix (out, in) and bias (out,) of an nn.Linear, a transformers Conv1D or a PackedLinear.

    A packed matrix goes from its blob straight to positions and values: no dense copy is made.
    """
    bias = getattr(module, "bias", None)
    return Linear(_matrix(module), None if bias is None else vector_of(bias))


def vector_of(tensor: Tensor) -> NDArray[np.float32]:
    """Return a float32 copy of a parameter, in its shape."""
    return np.array(tensor.detach().float().numpy(), np.float32, order="C")


def header_of(module: PackedLinear) -> codec.Header:
    """Return the header of a packed layer's blob."""
    return codec.read_header(_blob(module))


def dense_of(module: PackedLinear) -> nn.Linear:
    """Return an nn.Linear with the weights of a packed layer, in the type of its output."""
    rows, columns = reversed(module.shape) if module.transposed else module.shape
    dense = nn.Linear(columns, rows, bias=False, dtype=module.dtype)
    weight = torch.from_numpy(codec.decode(_blob(module), module.shape)).to(module.dtype)
    dense.weight = nn.Parameter(weight.T.contiguous() if module.transposed else weight, requires_grad=False)
    dense.register_parameter("bias", module.bias)
    return dense.eval()


def is_replaceable(module: nn.Module, module_places: Iterable[LinearPlace]) -> bool:
    """Return whether another module can replace a linear layer.

    A subclass may do more than multiply, and the layers of torch's own blocks are not called at all:
    such a block reads their weights directly.
    """
    utils = sys.modules.get("transformers.pytorch_utils")
    plain = (nn.Linear, PackedLinear, utils.Conv1D) if utils else (nn.Linear, PackedLinear)
    return type(module) in plain and all(
        isinstance(place.parent, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        or not type(place.parent).__module__.startswith("torch.nn.modules.")
        for place in module_places
    )


def places(model: nn.Module) -> dict[nn.Module, list[LinearPlace]]:
    """Return every module below `model` with all its places, in the model's order."""
    result: dict[nn.Module, list[LinearPlace]] = {}
    for above, parent in model.named_modules():
        for name, child in parent._modules.items():  # named_children() leaves a second place out
            if child is not None:
                result.setdefault(child, []).append(LinearPlace(parent, name, f"{above}.{name}".lstrip(".")))
    return result


def _matrix(module: nn.Module) -> Matrix:
    if isinstance(module, PackedLinear):
        rows, columns = module.shape
        matrix = Matrix.from_blob(_blob(module), (rows, columns))
        return _transposed(matrix) if module.transposed else matrix
    dense = module.get_parameter("weight").detach().float()
    return Matrix.from_dense((dense if isinstance(module, nn.Linear) else dense.T).numpy())


def _transposed(matrix: Matrix) -> Matrix:
    """Return a matrix stored (in, out), as Conv1D's is, as (out, in), without its per-input scales."""
    rows, columns = matrix.shape
    row, column = np.divmod(positions_of(matrix), columns)
    positions = column * rows + row
    order = np.argsort(positions)
    return Matrix((columns, rows), positions[order], matrix.values[order])


def positions_of(matrix: Matrix) -> NDArray[np.int64]:
    """Return the flat positions (kept,), ascending, also if every element is stored."""
    return np.arange(len(matrix.values)) if matrix.positions is None else matrix.positions


def _blob(module: PackedLinear) -> NDArray[np.uint8]:
    blob: NDArray[np.uint8] = module.weight.detach().view(torch.uint8).numpy()
    return blob
