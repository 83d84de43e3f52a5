"""The Python interface of the sparse engine: run whole encoders, or single linear layers."""

import ctypes
import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fineprune_runtime import native
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Floats, Layer, Linear, Matrix, Relative
from fineprune_runtime.shrink import shrunk

MOST_WINDOW = 2**30
"""The largest `window` of a layer."""


class Encoder:
    """Encoder layers that run one after another, on the tokens that a mask keeps.

    The layers are packed for the processor's instructions, and are not needed afterwards. Heads and inner
    neurons that nothing reads, or that read nothing, are omitted. An encoder may be called from several
    threads: calls of the same encoder wait for each other, calls of different encoders do not. A fork waits
    for running calls, and its child can use the encoder.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        *,
        head_dim: int,
        activation: str = "gelu",
        epsilon: float = 1e-12,
        bias: Floats | None = None,
        pre_norm: bool = False,
        relative: Relative | None = None,
        dtype: str = "float32",
        threads: int = 1,
        level: str | None = None,
    ) -> None:
        """Pack the layers.

        Args:
            layers: the layers, first to last.
            head_dim: the size of a head.
            activation: "gelu", "gelu_tanh" or "relu".
            epsilon: of the layer norms.
            bias: (rows, 2 * reach + 1), added to the scores of attention by distance, key - query, from
                -reach to reach, and farther as at these ends. Which head adds which row is in the layers'
                `bias_rows`. None: nothing is added.
            pre_norm: the sums of a layer go on as they are, and only their norms go into the next matrices.
            relative: the embeddings of distances, for the layers' `position_key` and `position_query`; None:
                these are not used.
            dtype: "float32", "bfloat16" or "int8", of weights and activations; sums and norms are float32.
            threads: the number of threads.
            level: the instruction level; None: the best that offers `dtype`.

        Raises:
            EngineError: a value is not allowed, dimensions do not fit each other, or a number is not finite.
        """
        if activation not in native.ACTIVATIONS:
            raise EngineError(
                f"activation {activation!r} cannot be run; allowed are {', '.join(native.ACTIVATIONS)}"
            )
        threads = _whole_threads(threads)
        if not isinstance(head_dim, int) or not 0 < head_dim <= native.MOST_COLUMNS:
            raise EngineError(f"head_dim is {head_dim!r}; 1 to {native.MOST_COLUMNS} can be run")
        if not 0 <= epsilon < math.inf:
            raise EngineError(f"epsilon is {epsilon!r}; it is a small number, at least 0")
        if bias is not None and (bias.ndim != 2 or bias.shape[1] % 2 == 0):
            raise EngineError(f"a bias of shape {bias.shape}; expected (rows, 2 * reach + 1)")
        self.dtype, self.threads = dtype, threads
        self.level = _level(dtype, level)
        self._library = native.library(self.level)
        self._handle: ctypes.c_void_p | None = None
        self.hidden = 0
        self._pre_norm = pre_norm
        for layer in layers:
            if self._handle is None:
                self.hidden = layer.attention_output.weight.shape[0]
                number = native.ACTIVATIONS.index(activation)
                self._handle = self._new(head_dim, epsilon, number)
                if bias is not None:
                    self._set_bias(bias)
                if relative is not None:
                    self._set_distances(relative)
            smaller = shrunk(layer, head_dim, activation)
            arrays: list[Any] = []  # alive until the call has read them
            c_layer = _c_layer(smaller, head_dim, relative, arrays)
            native.call(self._library, "fp_encoder_add", self._handle, ctypes.byref(c_layer))
        if self._handle is None:
            raise EngineError("an encoder has at least one layer")

    def _new(self, head_dim: int, epsilon: float, activation: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        settings = native.CSettings(
            self.hidden,
            head_dim,
            epsilon,
            activation,
            native.DTYPES.index(self.dtype),
            self.threads,
            self._pre_norm,
        )
        native.call(self._library, "fp_encoder_new", ctypes.byref(settings), ctypes.byref(handle))
        return handle

    def _set_bias(self, bias: Floats) -> None:
        rows, width = bias.shape
        arrays: list[Any] = []
        values = _pointer(bias, np.float32, (rows, width), arrays)
        native.call(self._library, "fp_encoder_set_bias", self._handle, rows, width // 2, values)

    def _set_distances(self, relative: Relative) -> None:
        arrays: list[Any] = []
        width = relative.rows.size
        rows = _pointer(relative.rows, np.int64, (width - 1 + width % 2,), arrays)
        count = len(relative.embeddings)
        native.call(self._library, "fp_encoder_set_distances", self._handle, count, width // 2, rows)

    def __call__(self, hidden: Floats, mask: ArrayLike | None = None) -> Floats:
        """Return the output of the last layer, (batch, length, hidden) float32.

        It is zero where the mask is 0, except for the first token of a text, which heads read: that one is
        computed from the tokens that the mask keeps, as torch does, so padding may be on either side. A text
        with a token that is not finite becomes NaN.

        Args:
            hidden: the input, (batch, length, hidden).
            mask: (batch, length), nonzero at tokens; None: tokens everywhere.

        Raises:
            EngineError: a shape is another.
        """
        hidden = np.ascontiguousarray(hidden, dtype=np.float32)
        if hidden.ndim != 3 or hidden.shape[2] != self.hidden:
            raise EngineError(
                f"hidden states of shape {hidden.shape}; expected (batch, length, {self.hidden})"
            )
        flags = None
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != hidden.shape[:2]:
                raise EngineError(f"a mask of shape {mask.shape}; expected {hidden.shape[:2]}")
            flags = np.ascontiguousarray(mask != 0).view(np.uint8)
        out = np.empty_like(hidden)
        native.call(
            self._library,
            "fp_encoder_run",
            self._handle,
            hidden.ctypes.data,
            None if flags is None else flags.ctypes.data,
            *hidden.shape[:2],
            out.ctypes.data,
        )
        return out

    @property
    def nbytes(self) -> int:
        """Size of the packed weights in memory, in bytes."""
        return int(self._library.fp_encoder_bytes(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.fp_encoder_free(self._handle)
            self._handle = None

    def __reduce__(self) -> Any:
        raise TypeError("an Encoder holds compiled memory and cannot be copied or pickled; make another one")


class SparseLinear:
    """A single linear layer, for models whose encoder cannot be run as a whole."""

    def __init__(
        self, linear: Linear, *, dtype: str = "float32", threads: int = 1, level: str | None = None
    ) -> None:
        """Pack the layer. Arguments and errors are those of `Encoder`."""
        threads = _whole_threads(threads)
        self.dtype, self.threads = dtype, threads
        self.level = _level(dtype, level)
        self.shape = linear.weight.shape
        self._library = native.library(self.level)
        self._handle: ctypes.c_void_p | None = None
        handle, arrays = ctypes.c_void_p(), list[Any]()
        matrix = _c_matrix(linear.weight, linear.bias, arrays)
        number = native.DTYPES.index(dtype)
        native.call(
            self._library, "fp_linear_new", ctypes.byref(matrix), number, threads, ctypes.byref(handle)
        )
        self._handle = handle

    def __call__(self, x: Floats) -> Floats:
        """Return the outputs, (tokens, outputs) float32, for `x`, (tokens, inputs).

        A token that is not finite has NaN in all its outputs.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.shape[1]:
            raise EngineError(f"inputs of shape {x.shape}; expected (tokens, {self.shape[1]})")
        out = np.empty((len(x), self.shape[0]), np.float32)
        native.call(self._library, "fp_linear_run", self._handle, x.ctypes.data, len(x), out.ctypes.data)
        return out

    def time_kernel(self, repeats: int) -> tuple[float, int]:
        """Return the seconds that the kernel alone takes, and the number of tokens in them; for benchmarks.

        It runs `repeats` tiles one after another on one thread, without moving tokens into a tile
        and out of it.
        """
        seconds, tokens = ctypes.c_double(), ctypes.c_int64()
        results = (ctypes.byref(seconds), ctypes.byref(tokens))
        native.call(self._library, "fp_linear_time", self._handle, repeats, *results)
        return seconds.value, repeats * tokens.value

    @property
    def nbytes(self) -> int:
        """Size of the packed weights in memory, in bytes."""
        return int(self._library.fp_linear_bytes(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.fp_linear_free(self._handle)
            self._handle = None

    def __reduce__(self) -> Any:
        raise TypeError(
            "a SparseLinear holds compiled memory and cannot be copied or pickled; make another one"
        )


def _whole_threads(threads: Any) -> int:
    """Return the number of threads, of numpy too, as Python's; raise `EngineError` for another value."""
    if not isinstance(threads, Integral) or not 1 <= int(threads) <= native.MOST_THREADS:
        raise EngineError(f"threads is {threads!r}; it is a whole number from 1 to {native.MOST_THREADS}")
    return int(threads)


def _level(dtype: str, level: str | None) -> str:
    if level is None or dtype not in native.DTYPES:
        return native.best_level(dtype)
    if dtype not in native.dtypes(level):
        raise EngineError(f"level {level!r} has no {dtype}; it offers {', '.join(native.dtypes(level))}")
    return level


def _c_layer(layer: Layer, head_dim: int, relative: Relative | None, arrays: list[Any]) -> native.CLayer:
    qkv = _below(layer.query, layer.key, layer.value)
    parts = (qkv, layer.attention_output, layer.ffn_in, layer.ffn_out)
    hidden = layer.attention_output.weight.shape[0]
    norms = (*layer.attention_norm, *layer.output_norm)
    rows, gate, window = layer.bias_rows, layer.ffn_gate, layer.window
    if window is not None and not 0 <= window <= MOST_WINDOW:
        raise EngineError(f"window is {window!r}; 0 to {MOST_WINDOW} can be run, or None")
    gate_matrix = None if gate is None else _c_matrix(gate.weight, gate.bias, arrays)
    arrays.append(gate_matrix)
    return native.CLayer(
        *(_c_matrix(part.weight, part.bias, arrays) for part in parts),
        *(_pointer(norm, np.float32, (hidden,), arrays) for norm in norms),
        None if rows is None else _pointer(rows, np.int64, rows.shape, arrays),
        None if gate_matrix is None else ctypes.addressof(gate_matrix),
        None if layer.rotary is None else _pointer(layer.rotary, np.float32, (head_dim // 2,), arrays),
        -1 if window is None else window,
        *(_projected(name, layer, relative, arrays) for name in ("position_key", "position_query")),
    )


def _projected(name: str, layer: Layer, relative: Relative | None, arrays: list[Any]) -> int | None:
    """Return the address of the projected embeddings of distances, (inner, rows); None without them."""
    projection = getattr(layer, name)
    if projection is None:
        return None
    if relative is None:
        raise EngineError(f"{name} is given, and the encoder has no relative embeddings")
    inner, count = layer.attention_output.weight.shape[1], len(relative.embeddings)
    return _pointer(SparseLinear(projection)(relative.embeddings).T, np.float32, (inner, count), arrays)


def _below(*parts: Linear) -> Linear:
    """Return linear layers of the same input as one layer, with their outputs one after another."""
    columns = parts[0].weight.shape[1]
    if any(part.weight.shape[1] != columns for part in parts):
        raise EngineError(f"query, key and value have {[part.weight.shape[1] for part in parts]} inputs")
    positions, begin = [], 0
    for part in parts:
        rows, _ = part.weight.shape
        stored = part.weight.positions
        positions.append((np.arange(rows * columns) if stored is None else stored) + begin)
        begin += rows * columns
    is_dense = all(part.weight.positions is None for part in parts)
    scales = [part.weight.scales for part in parts]
    row_scales = [scale for scale in scales if scale is not None]
    biases = [
        np.zeros(part.weight.shape[0], np.float32) if part.bias is None else part.bias for part in parts
    ]
    matrix = Matrix(
        (begin // columns if columns else sum(part.weight.shape[0] for part in parts), columns),
        None if is_dense else np.concatenate(positions),
        np.concatenate([part.weight.values for part in parts]),
        np.concatenate(row_scales) if len(row_scales) == len(scales) else None,
    )
    return Linear(matrix, np.concatenate(biases))


def _c_matrix(weight: Matrix, bias: Floats | None, arrays: list[Any]) -> native.CMatrix:
    rows, columns = weight.shape
    stored = len(weight.values)
    return native.CMatrix(
        rows,
        columns,
        stored,
        None if weight.positions is None else _pointer(weight.positions, np.int64, (stored,), arrays),
        _pointer(weight.values, np.float32, (stored,), arrays),
        None if bias is None else _pointer(bias, np.float32, (rows,), arrays),
        None if weight.scales is None else _pointer(weight.scales, np.float32, (rows,), arrays),
    )


def _pointer(array: Any, dtype: type, shape: tuple[int, ...], arrays: list[Any]) -> int:
    """Return the address of the elements of an array, which is added to `arrays` to keep it alive."""
    array = np.ascontiguousarray(array, dtype=dtype)
    if array.shape != shape:
        raise EngineError(f"an array of shape {array.shape}, expected {shape}")
    arrays.append(array)
    return int(array.ctypes.data)
