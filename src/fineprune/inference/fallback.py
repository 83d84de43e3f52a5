"""Run linear layers as torch's sparse matrices if there is no native library; the engine is faster.

The layout matters: torch's product of a CSR matrix with features in rows and tokens in columns, `W @ X`, is
faster than the dense one from about 85 % zeros on; `torch.nn.functional.linear` with a CSR weight, tokens
in rows, is no faster than the dense one.
"""

import functools
import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from fineprune.inference.weights import positions_of
from fineprune_runtime.layers import Linear, Matrix

BREAK_EVEN = 0.15
"""The density above which torch's dense product is faster (128 to 1,024 tokens, one thread)."""


class CsrEngine:
    """A linear layer in torch's CSR form, with the engine's interface.

    It maps float32 (tokens, in) to (tokens, out) and runs on torch's threads.
    """

    level = "torch-csr"
    dtype = "float32"

    def __init__(self, linear: Linear) -> None:
        rows, columns = linear.weight.shape
        positions = positions_of(linear.weight)
        starts = np.searchsorted(positions, np.arange(rows + 1) * columns)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            self._weight = torch.sparse_csr_tensor(
                torch.from_numpy(starts.astype(np.int32)),
                torch.from_numpy((positions % columns).astype(np.int32)),
                torch.from_numpy(np.ascontiguousarray(linear.weight.values, np.float32)),
                (rows, columns),
                check_invariants=True,
            )
        self._bias = None if linear.bias is None else torch.from_numpy(linear.bias)[:, None]
        self.nbytes = 4 * (2 * len(positions) + rows + 1)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        features = torch.from_numpy(x).T.contiguous()
        result = self._weight @ features
        if self._bias is not None:
            result += self._bias
        answer: NDArray[np.float32] = result.T.contiguous().numpy()
        return answer


@functools.cache
def runs_here() -> bool:
    """Return whether this build of torch multiplies CSR matrices on the CPU: some without MKL do not."""
    try:
        CsrEngine(Linear(Matrix.from_dense(np.eye(2, dtype=np.float32)), None))(np.ones((1, 2), np.float32))
    except (RuntimeError, NotImplementedError):
        return False
    return True
