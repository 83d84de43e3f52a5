"""Run the linear layers outside the encoder."""

import math

from fineprune_runtime.engine import SparseLinear
from fineprune_runtime.layers import Floats, Linear, Matrix


class Dense:
    """A linear layer of a head, or after the embeddings.

    The engine runs it, because we cannot set the threads of numpy's matrix library, which spin on the cores
    that the encoder needs (25 ms for a task of 0.1 ms).
    """

    def __init__(self, weight: Floats, bias: Floats) -> None:
        """Pack `weight`, (outputs, inputs), and `bias`, (outputs,), for the engine."""
        self._outputs = len(bias)
        self._run = SparseLinear(Linear(Matrix.from_dense(weight), bias))

    def __call__(self, x: Floats) -> Floats:
        """Return the outputs, (..., outputs), for `x`, (..., inputs)."""
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # of no rows, -1 would not say how many
        return self._run(rows).reshape(*x.shape[:-1], self._outputs)

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self._run.nbytes
