"""Matrices whose outputs share inputs in fours, and attention over long texts."""

import math

import numpy as np
import pytest
from runtime.closeness import most_level
from runtime.engines import (
    PAIRS,
    EncoderCase,
    LinearCase,
    check_encoder,
    check_linear,
    floats,
    layer,
    linear,
    make_linear,
)

from fineprune_runtime import Encoder, SparseLinear

pytestmark = pytest.mark.skipif(not PAIRS, reason="the engine's libraries were not built")
everywhere = pytest.mark.parametrize(("level", "dtype"), PAIRS)
blocks = pytest.mark.parametrize("block", [(4, 1), (4, 2), (4, 4)])


@everywhere
def test_four_outputs_store_their_inputs_once(level, dtype):
    dense = np.zeros((4, 100), np.float32)
    dense[:, :90:3] = 1
    engine = SparseLinear(linear(dense), dtype=dtype, level=level)
    inputs = {"float32": 1, "bfloat16": 2, "int8": 4}[dtype]  # of a step
    steps = math.ceil(30 / inputs)
    run, outputs, bias = 8, 4 * 4, 4 * 4
    scales_and_sums = 2 * 4 * 4 if dtype == "int8" else 0
    offsets, words = 2 * inputs * steps, 4 * 4 * steps
    once = run + outputs + bias + scales_and_sums + offsets + words
    if dtype == "int8" and level == "portable" and most_level(level) == 127:
        assert engine.nbytes > once  # without instructions for products of bytes, single weights cost less
    else:
        assert engine.nbytes == once


@everywhere
@blocks
@pytest.mark.parametrize(("rows", "columns"), [(8, 40), (23, 1603)])
def test_blocks_and_weights_beside_them(level, dtype, block, rows, columns):
    # Ones in blocks, some with a hole, and beside them. All is exact in every type.
    random = np.random.default_rng(columns)
    dense = np.zeros((rows, columns), np.float32)
    for row in range(0, rows, 4):
        for first in range(0, columns, 4 * (1 + row % 3)):
            dense[row : row + 4, first : first + block[1]] = 1
    dense[random.random(dense.shape) < 0.02] = 1
    dense[random.random(dense.shape) < 0.02] = 0
    x = random.integers(0, 256, (70, columns)).astype(np.float32)
    x[:, 0], x[:, 1] = 0, 255  # so that a step of int8 is 1
    y = SparseLinear(linear(dense), dtype=dtype, level=level)(x)
    # int8: 127 times the scale 1/127 is off by 2^-24
    assert np.abs(y - x @ dense.T).max() <= (2**-23 * 255 * columns if dtype == "int8" else 0)


@everywhere
@blocks
def test_random_blocks(level, dtype, block):
    for density, skewed in ((0.05, False), (0.3, True), (0.9, False)):
        check_linear(
            LinearCase(22, 900, density, 9, skewed, True, False, 35, 2, 3, block=block), level, dtype
        )


@everywhere
@blocks
def test_a_token_alone_has_the_same_result(level, dtype, block):
    random = np.random.default_rng(0)
    given = make_linear(random, 36, 900, density=0.2, skewed=True, block=block)
    x = random.standard_normal((71, 900)).astype(np.float32)
    y = SparseLinear(given, dtype=dtype, level=level)(x)
    assert SparseLinear(given, dtype=dtype, threads=3, level=level)(x).tobytes() == y.tobytes()
    for token in (0, 40, 70):
        alone = SparseLinear(given, dtype=dtype, level=level)(x[token : token + 1])
        assert alone.tobytes() == y[token].tobytes()


@everywhere
@blocks
def test_an_encoder_of_blocks(level, dtype, block):
    case = EncoderCase(2, 64, 2, 16, 100, 0.3, 9, 1, True, "gelu", 2, 45, 2, 2, 7, reach=20, block=block)
    check_encoder(case, level, dtype)


@everywhere
@pytest.mark.parametrize("place", [0, 511, 512, 1100])
def test_one_of_many_keys(level, dtype, place):
    # One key of 1,101 has as much weight as all others together. Its value is 8, theirs is 4: 6 is added to
    # the first feature, wherever that key is.
    own = layer(
        query=linear(np.zeros((1, 4)), [1]),
        key=linear([[0, math.log(1100), 0, 0]]),
        value=linear([[0, 0, 1, 0]]),
        attention_output=linear([[1], [0], [0], [0]]),
    )
    x = np.tile(floats([-3, 0, 4, 0]), (1, 1101, 1))
    x[0, place] = [-6, 1, 8, 1]
    y = Encoder([own], head_dim=1, dtype=dtype, level=level)(x)
    expected = (np.array([3, 0, 4, 0]) - 7 / 4) / math.sqrt((9 + 16) / 4 - (7 / 4) ** 2)
    others = np.delete(y[0], place, axis=0)
    # bfloat16 rounds ln 1100 = 7.003 to 7, and with it the one weight by 0.3 %
    assert np.abs(others - expected).max() <= {"float32": 3e-6, "bfloat16": 0.03, "int8": 0.04}[dtype]


@everywhere
def test_a_bias_over_many_keys(level, dtype):
    case = EncoderCase(1, 32, 2, 15, 8, 0.5, 0, 0, True, "gelu", 1, 550, 0, 2, 11, reach=30)
    check_encoder(case, level, dtype)
