"""Remove dead heads and neurons from a layer without changing its output.

`dead_units` has the rule. The constant that a dead unit contributes moves into the bias of the matrix that
reads it: V's bias for a head without rows of V, activation(bias) for a neuron without a row of FFN-in.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.dead_units import Flags, HeadSizes, living_heads, living_neurons
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Floats, Layer, Linear, Matrix
from fineprune_runtime.native import MOST_COLUMNS, MOST_ROWS


def shrunk(layer: Layer, head_dim: int, activation: str) -> Layer:
    """Return the layer without its dead heads and neurons; `layer` itself where none is dead.

    Matrices that do not fit each other are left for the engine to refuse.

    Raises:
        EngineError: a matrix that is not as `Matrix` describes it.
    """
    for name, part in zip(layer._fields, layer, strict=True):
        if isinstance(part, Linear):
            _check(name, part)
    inner = layer.attention_output.weight.shape[1]
    positions = [part for part in (layer.position_key, layer.position_query) if part is not None]
    heads = (layer.query, layer.key, layer.value, *positions)
    if head_dim > 0 and inner % head_dim == 0 and all(part.weight.shape[0] == inner for part in heads):
        sizes = HeadSizes(inner // head_dim, inner // head_dim, head_dim)
        read, values = _columns_used(layer.attention_output.weight), _rows_used(layer.value.weight)
        living = living_heads(sizes, read, values)
        if layer.bias_rows is not None and layer.bias_rows.shape != living.shape:
            raise EngineError(
                f"bias_rows of shape {layer.bias_rows.shape}; expected a row for each of {len(living)} heads"
            )
        alive = np.repeat(living, head_dim)
        if not alive.all():
            layer = layer._replace(
                query=_rows(layer.query, alive),
                key=_rows(layer.key, alive),
                value=_rows(layer.value, alive),
                attention_output=_without(layer.attention_output, alive, _bias(layer.value)),
                bias_rows=None if layer.bias_rows is None else layer.bias_rows[living],
                position_key=None if layer.position_key is None else _rows(layer.position_key, alive),
                position_query=None if layer.position_query is None else _rows(layer.position_query, alive),
            )
    if layer.ffn_in.weight.shape[0] == layer.ffn_out.weight.shape[1]:
        layer = _without_neurons(layer, activation)
    return layer


def _without_neurons(layer: Layer, activation: str) -> Layer:
    gate, reached = layer.ffn_gate, _rows_used(layer.ffn_in.weight)
    given = np.zeros(len(reached))  # what a neuron without weights gives
    given[~reached] = _activate(_bias(layer.ffn_in)[~reached], activation)
    if gate is not None:
        if gate.weight.shape[0] != len(reached):
            return layer
        # A product is a constant if both sides are, or if one of them is always 0.
        passed, factors = _rows_used(gate.weight), _bias(gate)
        reached = (reached | passed) & (reached | (given != 0)) & (passed | (factors != 0))
        given *= factors
    alive = living_neurons(_columns_used(layer.ffn_out.weight), reached)
    if alive.all():
        return layer
    return layer._replace(
        ffn_in=_rows(layer.ffn_in, alive),
        ffn_out=_without(layer.ffn_out, alive, given),
        ffn_gate=None if gate is None else _rows(gate, alive),
    )


def _check(name: str, linear: Linear) -> None:
    """Raise `EngineError` for an invalid layer, since the engine will see only the units that remain."""
    (rows, columns), positions, values, scales = linear.weight
    if not (0 <= rows <= MOST_ROWS and 0 <= columns <= MOST_COLUMNS):
        raise EngineError(f"{name}: is {rows} x {columns}; at most {MOST_ROWS} x {MOST_COLUMNS} can be run")
    size = rows * columns
    if values.shape != ((size,) if positions is None else positions.shape):
        raise EngineError(
            f"{name}: has values of shape {values.shape} for {size} elements or their positions"
        )
    if positions is not None and len(positions):
        first, last = int(positions[0]), int(positions[-1])
        if first < 0 or last >= size or not (positions[1:] > positions[:-1]).all():
            raise EngineError(
                f"{name}: positions begin with {first} and end with {last}; they rise, and end below {size}"
            )
    for what, array in (("bias", linear.bias), ("scale", scales)):
        if array is not None and array.shape != (rows,):
            raise EngineError(f"{name}: has a {what} of shape {array.shape} for {rows} outputs")
    for what, array in (("value", values), ("bias", linear.bias), ("scale", scales)):
        if array is not None and not np.isfinite(array).all():
            raise EngineError(f"{name}: {what} {int(np.isfinite(array).argmin())} is not finite")


def _rows_used(matrix: Matrix) -> Flags:
    rows, columns = matrix.shape
    if matrix.positions is None:
        return np.full(rows, columns > 0)
    used = np.zeros(rows, np.bool_)
    used[matrix.positions // max(columns, 1)] = True
    return used


def _columns_used(matrix: Matrix) -> Flags:
    rows, columns = matrix.shape
    if matrix.positions is None:
        return np.full(columns, rows > 0)
    used = np.zeros(columns, np.bool_)
    used[matrix.positions % max(columns, 1)] = True
    return used


def _bias(linear: Linear) -> NDArray[np.float64]:
    rows = linear.weight.shape[0]
    return np.zeros(rows) if linear.bias is None else np.asarray(linear.bias, dtype=np.float64)


def _parts(matrix: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    positions = np.arange(len(matrix.values)) if matrix.positions is None else matrix.positions
    row, column = np.divmod(positions, max(matrix.shape[1], 1))
    return row, column, matrix.values


def _rows(linear: Linear, alive: Flags) -> Linear:
    """Return a layer without the outputs that are not `alive`."""
    row, column, values = _parts(linear.weight)
    columns, keep = linear.weight.shape[1], alive[row]
    place = np.cumsum(alive) - 1
    scales = linear.weight.scales
    weight = Matrix(
        (int(alive.sum()), columns),
        place[row[keep]] * columns + column[keep],
        values[keep],
        None if scales is None else scales[alive],
    )
    return Linear(weight, None if linear.bias is None else linear.bias[alive])


def _without(linear: Linear, alive: Flags, constant: NDArray[np.float64]) -> Linear:
    """Return a layer without the inputs that are not `alive`, whose values are always those of `constant`."""
    row, column, values = _parts(linear.weight)
    rows, keep = linear.weight.shape[0], alive[column]
    place, columns = np.cumsum(alive) - 1, int(alive.sum())
    added = np.bincount(row[~keep], values[~keep] * constant[column[~keep]], minlength=rows)
    weight = Matrix(
        (rows, columns), row[keep] * columns + place[column[keep]], values[keep], linear.weight.scales
    )
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, which the engine refuses
        return Linear(weight, (_bias(linear) + added).astype(np.float32))


def _activate(x: NDArray[np.float64], activation: str) -> NDArray[np.float64]:
    if activation == "relu":
        return np.maximum(x, 0.0)
    if activation == "gelu_tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + np.array([math.erf(value / math.sqrt(2.0)) for value in x]))
