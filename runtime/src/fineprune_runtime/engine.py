"""The sparse engine for Python: runs whole encoders, and single linear layers."""

import ctypes
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fineprune_runtime import native
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Floats, Layer, Linear, Matrix
from fineprune_runtime.shrink import shrunk


class Encoder:
    """Runs encoder layers one after another on the tokens that a mask keeps.

    The layers are packed for the processor's instructions, and are not needed afterwards. Heads and
    inner neurons that nothing reads, or that nothing reaches, are left out. Safe to call from several
    threads; calls of one encoder wait for each other, those of two do not.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        *,
        head_dim: int,
        activation: str = "gelu",
        epsilon: float = 1e-12,
        dtype: str = "float32",
        threads: int = 1,
        level: str | None = None,
    ) -> None:
        """`activation` is "gelu", "gelu_tanh" or "relu"; `epsilon` is that of the layer norms.

        `dtype`: "float32"; "bfloat16" or "int8" for weights and activations, where sums and norms stay
        float32. `level` is the instruction level, None for the best that offers `dtype`. Raises
        `EngineError` for values that are not allowed, dimensions that do not fit each other, and numbers
        that are not finite.
        """
        if activation not in native.ACTIVATIONS:
            raise EngineError(
                f"activation {activation!r} cannot be run; allowed are {', '.join(native.ACTIVATIONS)}"
            )
        _check_threads(threads)
        if not isinstance(head_dim, int) or not 0 < head_dim <= native.MOST_COLUMNS:
            raise EngineError(f"head_dim is {head_dim!r}; 1 to {native.MOST_COLUMNS} can be run")
        if not 0 <= epsilon < math.inf:
            raise EngineError(f"epsilon is {epsilon!r}; it is a small number, at least 0")
        self.dtype, self.threads = dtype, threads
        self.level = _level(dtype, level)
        self._library = native.library(self.level)
        self._handle: ctypes.c_void_p | None = None
        self.hidden = 0
        for layer in layers:
            if self._handle is None:
                self.hidden = layer.attention_output.weight.shape[0]
                number = native.ACTIVATIONS.index(activation)
                self._handle = self._new(head_dim, epsilon, number)
            kept = shrunk(layer, head_dim, activation)
            held: list[Any] = []  # alive until the call has read them
            native.call(self._library, "fp_encoder_add", self._handle, ctypes.byref(_c_layer(kept, held)))
        if self._handle is None:
            raise EngineError("an encoder has at least one layer")

    def _new(self, head_dim: int, epsilon: float, activation: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        settings = native.CSettings(
            self.hidden, head_dim, epsilon, activation, native.DTYPES.index(self.dtype), self.threads
        )
        native.call(self._library, "fp_encoder_new", ctypes.byref(settings), ctypes.byref(handle))
        return handle

    def __call__(self, hidden: Floats, mask: ArrayLike | None = None) -> Floats:
        """The last layer's output, (batch, length, hidden) float32, zeros where the mask is 0.

        `hidden` is (batch, length, hidden); `mask` is (batch, length), nonzero where a token is, None
        for tokens everywhere. Raises `EngineError` for other shapes.
        """
        hidden = np.ascontiguousarray(hidden, dtype=np.float32)
        if hidden.ndim != 3 or hidden.shape[2] != self.hidden:
            raise EngineError(
                f"hidden states of shape {hidden.shape}; expected (batch, length, {self.hidden})"
            )
        flags = None
        if mask is not None:
            kept = np.asarray(mask)
            if kept.shape != hidden.shape[:2]:
                raise EngineError(f"a mask of shape {kept.shape}; expected {hidden.shape[:2]}")
            flags = np.ascontiguousarray(kept != 0).view(np.uint8)
        out = np.empty_like(hidden)
        native.call(
            self._library,
            "fp_encoder_run",
            self._handle,
            _floats(hidden),
            None if flags is None else flags.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)),
            *hidden.shape[:2],
            _floats(out),
        )
        return out

    @property
    def nbytes(self) -> int:
        """Memory that the packed weights take."""
        return int(self._library.fp_encoder_bytes(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.fp_encoder_free(self._handle)
            self._handle = None

    def __reduce__(self) -> Any:
        raise TypeError("an Encoder holds compiled memory and cannot be copied or pickled; make another one")


class SparseLinear:
    """Runs one linear layer; for models whose encoder cannot be run as a whole."""

    def __init__(
        self, linear: Linear, *, dtype: str = "float32", threads: int = 1, level: str | None = None
    ) -> None:
        """As `Encoder`."""
        _check_threads(threads)
        self.dtype, self.threads = dtype, threads
        self.level = _level(dtype, level)
        self.shape = linear.weight.shape
        self._library = native.library(self.level)
        self._handle: ctypes.c_void_p | None = None
        handle, held = ctypes.c_void_p(), list[Any]()
        matrix = _c_matrix(linear.weight, linear.bias, held)
        number = native.DTYPES.index(dtype)
        native.call(
            self._library, "fp_linear_new", ctypes.byref(matrix), number, threads, ctypes.byref(handle)
        )
        self._handle = handle

    def __call__(self, x: Floats) -> Floats:
        """(tokens, outputs) float32 of `x`, (tokens, inputs)."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.shape[1]:
            raise EngineError(f"inputs of shape {x.shape}; expected (tokens, {self.shape[1]})")
        out = np.empty((len(x), self.shape[0]), np.float32)
        native.call(self._library, "fp_linear_run", self._handle, _floats(x), len(x), _floats(out))
        return out

    def time_kernel(self, repeats: int) -> tuple[float, int]:
        """For benchmarks: seconds of the kernel alone for so many tokens, and how many those are.

        `repeats` tiles one after another on one thread, without the way into a tile and out of it.
        """
        seconds, tokens = ctypes.c_double(), ctypes.c_int64()
        found = (ctypes.byref(seconds), ctypes.byref(tokens))
        native.call(self._library, "fp_linear_time", self._handle, repeats, *found)
        return seconds.value, repeats * tokens.value

    @property
    def nbytes(self) -> int:
        """Memory that the packed weights take."""
        return int(self._library.fp_linear_bytes(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.fp_linear_free(self._handle)
            self._handle = None

    def __reduce__(self) -> Any:
        raise TypeError(
            "a SparseLinear holds compiled memory and cannot be copied or pickled; make another one"
        )


def _check_threads(threads: int) -> None:
    if not isinstance(threads, int) or not 1 <= threads <= native.MOST_THREADS:
        raise EngineError(f"threads is {threads!r}; it is a whole number from 1 to {native.MOST_THREADS}")


def _level(dtype: str, level: str | None) -> str:
    if level is None or dtype not in native.DTYPES:
        return native.best_level(dtype)
    if dtype not in native.dtypes(level):
        raise EngineError(f"level {level!r} has no {dtype}; it offers {', '.join(native.dtypes(level))}")
    return level


def _c_layer(layer: Layer, held: list[Any]) -> native.CLayer:
    qkv = _below(layer.query, layer.key, layer.value)
    parts = (qkv, layer.attention_output, layer.ffn_in, layer.ffn_out)
    hidden = layer.attention_output.weight.shape[0]
    norms = (*layer.attention_norm, *layer.output_norm)
    return native.CLayer(
        *(_c_matrix(part.weight, part.bias, held) for part in parts),
        *(_pointer(norm, np.float32, (hidden,), held) for norm in norms),
    )


def _below(*parts: Linear) -> Linear:
    """Linear layers of the same input as one, their outputs one after another."""
    columns = parts[0].weight.shape[1]
    if any(part.weight.shape[1] != columns for part in parts):
        raise EngineError(f"query, key and value have {[part.weight.shape[1] for part in parts]} inputs")
    positions, begin = [], 0
    for part in parts:
        rows, _ = part.weight.shape
        own = part.weight.positions
        positions.append((np.arange(rows * columns) if own is None else own) + begin)
        begin += rows * columns
    whole = all(part.weight.positions is None for part in parts)
    scales = [part.weight.scales for part in parts]
    known = [scale for scale in scales if scale is not None]
    biases = [
        np.zeros(part.weight.shape[0], np.float32) if part.bias is None else part.bias for part in parts
    ]
    matrix = Matrix(
        (begin // columns if columns else sum(part.weight.shape[0] for part in parts), columns),
        None if whole else np.concatenate(positions),
        np.concatenate([part.weight.values for part in parts]),
        np.concatenate(known) if len(known) == len(scales) else None,
    )
    return Linear(matrix, np.concatenate(biases))


def _c_matrix(weight: Matrix, bias: Floats | None, held: list[Any]) -> native.CMatrix:
    rows, columns = weight.shape
    kept = len(weight.values)
    return native.CMatrix(
        rows,
        columns,
        kept,
        None if weight.positions is None else _pointer(weight.positions, np.int64, (kept,), held),
        _pointer(weight.values, np.float32, (kept,), held),
        None if bias is None else _pointer(bias, np.float32, (rows,), held),
        None if weight.scales is None else _pointer(weight.scales, np.float32, (rows,), held),
    )


def _pointer(array: Any, dtype: type, shape: tuple[int, ...], held: list[Any]) -> int:
    """The address of an array's elements; `held` keeps them alive."""
    array = np.ascontiguousarray(array, dtype=dtype)
    if array.shape != shape:
        raise EngineError(f"an array of shape {array.shape}, expected {shape}")
    held.append(array)
    return int(array.ctypes.data)


def _floats(array: Floats) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
