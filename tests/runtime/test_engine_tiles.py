"""Dense products at the edges of tile registers: 16 outputs, 16 words of inputs, 16 tokens."""

import itertools

import numpy as np
import pytest
from runtime.closeness import assert_close
from runtime.engines import LEVELS, PAIRS, make_linear

from fineprune_runtime import SparseLinear

ROWS = (8, 15, 16, 17, 33, 64, 65, 80)  # fewer than 8 dense rows are computed otherwise
COLUMNS = (1, 31, 32, 33, 64, 65, 130)  # a word is 2 inputs of bfloat16, 4 of int8
TOKENS = (1, 9, 16, 17, 33, 64, 70)


@pytest.mark.parametrize(("level", "dtype"), PAIRS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_dense_matrices_of_any_size(level, dtype, columns):
    random = np.random.default_rng(columns)
    for rows, tokens in itertools.product(ROWS, TOKENS):
        given = make_linear(random, rows, columns)
        x = random.standard_normal((tokens, columns)).astype(np.float32)
        assert_close(SparseLinear(given, dtype=dtype, level=level)(x), given, x, dtype, level)


@pytest.mark.skipif("amx" not in LEVELS, reason="this processor has no tiles")
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_tiles_of_bytes_give_the_integers_of_vectors(density):
    random = np.random.default_rng(0)
    for columns, tokens in itertools.product(COLUMNS, TOKENS):
        given = make_linear(random, 65, columns, density=density)
        x = random.standard_normal((tokens, columns)).astype(np.float32)
        y = [SparseLinear(given, dtype="int8", level=level)(x) for level in ("amx", "avx512_bf16")]
        assert y[0].tobytes() == y[1].tobytes()
