"""What the engine takes, read from live modules: a linear layer, dense or packed, as matrix and bias."""

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
    """Where a module hangs: `getattr(parent, name)` is it, and `dotted` its name in the model."""

    parent: nn.Module
    name: str
    dotted: str


def linear_of(module: nn.Module) -> Linear:
    """Matrix (out, in) and bias (out,) of an nn.Linear, a transformers Conv1D or a PackedLinear.

    A packed matrix goes from its blob straight to positions and values: no dense copy is made.
    """
    bias = getattr(module, "bias", None)
    return Linear(_matrix(module), None if bias is None else vector_of(bias))


def vector_of(tensor: Tensor) -> NDArray[np.float32]:
    """A float32 copy of a parameter, in its shape."""
    return np.array(tensor.detach().float().numpy(), np.float32, order="C")


def header_of(module: PackedLinear) -> codec.Header:
    """What the blob of a packed layer says of itself."""
    return codec.read_header(_blob(module))


def dense_of(module: PackedLinear) -> nn.Linear:
    """An ordinary layer that answers as a packed one, in the type that it answers in."""
    rows, columns = reversed(module.shape) if module.transposed else module.shape
    dense = nn.Linear(columns, rows, bias=False, dtype=module.dtype)
    weight = torch.from_numpy(codec.decode(_blob(module), module.shape)).to(module.dtype)
    dense.weight = nn.Parameter(weight.T.contiguous() if module.transposed else weight, requires_grad=False)
    dense.register_parameter("bias", module.bias)
    return dense.eval()


def is_replaceable(module: nn.Module, found: Iterable[LinearPlace]) -> bool:
    """Whether a linear layer can give way to another module that is called in its place.

    A subclass may do more than multiply, and the layers of torch's own blocks are not called at all:
    such a block reads their weights.
    """
    utils = sys.modules.get("transformers.pytorch_utils")
    plain = (nn.Linear, PackedLinear, utils.Conv1D) if utils else (nn.Linear, PackedLinear)
    return type(module) in plain and all(
        isinstance(place.parent, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        or not type(place.parent).__module__.startswith("torch.nn.modules.")
        for place in found
    )


def places(model: nn.Module) -> dict[nn.Module, list[LinearPlace]]:
    """Every module below `model` and all the places where it hangs, in the model's order."""
    found: dict[nn.Module, list[LinearPlace]] = {}
    for above, parent in model.named_modules():
        for name, child in parent._modules.items():  # named_children() leaves a second place out
            if child is not None:
                found.setdefault(child, []).append(LinearPlace(parent, name, f"{above}.{name}".lstrip(".")))
    return found


def _matrix(module: nn.Module) -> Matrix:
    if isinstance(module, PackedLinear):
        rows, columns = module.shape
        matrix = Matrix.from_blob(_blob(module), (rows, columns))
        return _transposed(matrix) if module.transposed else matrix
    dense = module.get_parameter("weight").detach().float()
    return Matrix.from_dense((dense if isinstance(module, nn.Linear) else dense.T).numpy())


def _transposed(matrix: Matrix) -> Matrix:
    """A matrix stored (in, out), as Conv1D's is, the other way round. Its scales are of inputs, and go."""
    rows, columns = matrix.shape
    row, column = np.divmod(positions_of(matrix), columns)
    positions = column * rows + row
    order = np.argsort(positions)
    return Matrix((columns, rows), positions[order], matrix.values[order])


def positions_of(matrix: Matrix) -> NDArray[np.int64]:
    """(kept,), flat and ascending, also where every element is stored."""
    return np.arange(len(matrix.values)) if matrix.positions is None else matrix.positions


def _blob(module: PackedLinear) -> NDArray[np.uint8]:
    blob: NDArray[np.uint8] = module.weight.detach().view(torch.uint8).numpy()
    return blob
