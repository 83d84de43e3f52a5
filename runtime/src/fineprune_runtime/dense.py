"""The few linear layers outside the encoder."""

from fineprune_runtime.engine import SparseLinear
from fineprune_runtime.layers import Floats, Linear, Matrix


class Dense:
    """One linear layer, of a head or behind the embeddings.

    Run by the engine: the threads of numpy's matrix library are not ours to set, and spin on the cores
    that the encoder needs (25 ms for what takes 0.1).
    """

    def __init__(self, weight: Floats, bias: Floats) -> None:
        """`weight` (outputs, inputs), `bias` (outputs,)."""
        self._run = SparseLinear(Linear(Matrix.from_dense(weight), bias))

    def __call__(self, x: Floats) -> Floats:
        """(..., inputs) to (..., outputs)."""
        return self._run(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self._run.nbytes
