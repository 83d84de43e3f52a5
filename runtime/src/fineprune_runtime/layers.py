"""The parts of an encoder: sparse matrices, linear layers, norms and encoder layers."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fineprune_runtime import codec
from fineprune_runtime.errors import EngineError

Floats = NDArray[np.float32]


class Matrix(NamedTuple):
    """A weight matrix W of y = W x, by its stored elements."""

    shape: tuple[int, int]
    """(outputs, inputs)."""
    positions: NDArray[np.int64] | None
    """(stored,): flat, in row-major order, strictly ascending; None: every element is stored."""
    values: Floats
    """(stored,)."""
    scales: Floats | None = None
    """(outputs,): `values` are int8 levels times the scales of their rows; None: they are not quantized."""

    @classmethod
    def from_dense(cls, array: ArrayLike) -> Self:
        """Return a matrix of the non-zero elements of `array`, (outputs, inputs)."""
        dense = np.asarray(array, dtype=np.float32)
        if dense.ndim != 2:
            raise EngineError(f"a matrix has 2 dimensions, and this array {dense.ndim}: shape {dense.shape}")
        positions = np.flatnonzero(dense)
        if len(positions) == dense.size:
            return cls(dense.shape, None, dense.reshape(-1))
        return cls(dense.shape, positions, dense.reshape(-1)[positions])

    @classmethod
    def from_blob(cls, blob: codec.Bytes, shape: tuple[int, int]) -> Self:
        """Return a packed matrix of a compact checkpoint, without making it dense.

        Raises:
            CodecError: as `codec.decode`.
        """
        packed = codec.take_apart(blob, shape)
        values = np.asarray(codec.dequantized(packed), dtype=np.float32)
        positions = None if len(values) == shape[0] * shape[1] else packed.positions
        return cls(shape, positions, values, packed.scales if len(packed.scales) else None)

    def parts(self, count: int) -> "tuple[Matrix, ...]":
        """Return `count` matrices with as many of the rows each, first to last."""
        rows, columns = self.shape[0] // count, self.shape[1]
        ends = [number * rows * columns for number in range(count + 1)]
        cuts = ends if self.positions is None else np.searchsorted(self.positions, ends).tolist()
        return tuple(
            Matrix(
                (rows, columns),
                None if self.positions is None else self.positions[cuts[at] : cuts[at + 1]] - ends[at],
                self.values[cuts[at] : cuts[at + 1]],
                None if self.scales is None else self.scales[at * rows : (at + 1) * rows],
            )
            for at in range(count)
        )

    @property
    def density(self) -> float:
        """The share of stored elements, 0 to 1."""
        size = self.shape[0] * self.shape[1]
        return len(self.values) / size if size else 0.0

    def to_dense(self) -> Floats:
        """Return the matrix as a dense array of `shape`."""
        dense = np.zeros(self.shape[0] * self.shape[1], np.float32)
        dense[slice(None) if self.positions is None else self.positions] = self.values
        return dense.reshape(self.shape)


class Linear(NamedTuple):
    """A linear layer, y = W x + b."""

    weight: Matrix
    bias: Floats | None
    """(outputs,); None: all are 0."""

    def parts(self, count: int) -> "tuple[Linear, ...]":
        """Return `count` layers with as many of the outputs each, first to last."""
        biases = [None] * count if self.bias is None else np.split(self.bias, count)
        return tuple(map(Linear, self.weight.parts(count), biases))


class Norm(NamedTuple):
    """The weight and the bias of a layer norm, (hidden,) each."""

    weight: Floats
    bias: Floats


class Relative(NamedTuple):
    """The embeddings of distances, of DeBERTa's attention."""

    embeddings: Floats
    """(rows, hidden)."""
    rows: NDArray[np.int64]
    """(2 * reach + 1,): the row of each distance, query - key, from -reach to reach.

    Farther ones have those at the ends.
    """


class Layer(NamedTuple):
    """An encoder layer with its norms after the sums (post-norm), as in BERT (Vaswani et al. 2017).

    In a pre-norm encoder, the norm after a sum is the one before the next matrices: the last layer's
    `output_norm` is the encoder's final norm.
    """

    query: Linear
    key: Linear
    value: Linear
    attention_output: Linear
    attention_norm: Norm
    ffn_in: Linear
    ffn_out: Linear
    output_norm: Norm
    bias_rows: NDArray[np.int64] | None = None
    """(heads,): the row of the encoder's `bias` that each head adds to its scores; None: they add none."""
    ffn_gate: Linear | None = None
    """Its outputs multiply the activated ones of `ffn_in`; None: there is none."""
    rotary: Floats | None = None
    """(head_dim / 2,): queries and keys are rotated by position x these angles; None: they are not."""
    window: int | None = None
    """Tokens farther apart than this do not see each other; None: all do."""
    position_key: Linear | None = None
    """What the encoder's `relative` embeddings go through before their products with queries; None: none."""
    position_query: Linear | None = None
    """As `position_key`, before their products with keys."""


def layer_norm(x: Floats, norm: Norm, epsilon: float) -> Floats:
    """Return the layer norm of `x` over its last dimension (Ba et al., 2016), as float32 like `x`."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the logits
        share = np.float32(1 / x.shape[-1])  # sums, since `mean` takes as long again for one short text
        result: Floats = x - x.sum(axis=-1, keepdims=True) * share
        variance = np.square(result).sum(axis=-1, keepdims=True) * share
        variance[~np.isfinite(variance)] = np.nan  # infinity would make zeros of the row, a plausible one
        result /= np.sqrt(variance + np.float32(epsilon))
        result *= norm.weight
        result += norm.bias
    return result
