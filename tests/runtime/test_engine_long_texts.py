"""Attention over long texts, where int8 takes integers: bytes from 24, 64 or 112 tokens, or 16 bits."""

import math

import numpy as np
import pytest
from runtime.engines import PAIRS, EncoderCase, check_encoder, floats, layer, linear

from fineprune_runtime import Encoder

everywhere = pytest.mark.parametrize(("level", "dtype"), PAIRS)
# Integers begin at 24, 64 or 112; sums of 16 bits end after 256 keys; four bytes are multiplied together.
LENGTHS = (23, 24, 25, 63, 64, 65, 111, 112, 113, 255, 256, 257, 300, 513)
WIDE = 64
CLOSE = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.08}


def attended(level, dtype, x, query, key, size=1.0):
    """What attention adds to the first feature of each token; its value is the second feature.

    Query, key and value have WIDE features that are all alike, and `size` as their unit.
    """
    ones = np.ones((WIDE, 1))
    own = layer(
        inner=WIDE,
        query=linear(ones * [query], np.zeros(WIDE)),
        key=linear(ones * [key], np.zeros(WIDE)),
        value=linear(ones * [[0, size, 0, 0]]),
        attention_output=linear(np.outer([1, 0, 0, 0], np.full(WIDE, 1 / (WIDE * size)))),
    )
    y = Encoder([own], head_dim=WIDE, dtype=dtype, level=level)(floats([x]))[0]
    # Features 3 and 4 are 2 and -2, whose distance after the norm is 4 over its divisor.
    return 4 * (y[:, 0] - y[:, 2]) / (y[:, 2] - y[:, 3]) + 2 - np.asarray(x)[:, 0]


@everywhere
@pytest.mark.parametrize("length", LENGTHS)
def test_equal_keys_give_the_mean(level, dtype, length):
    x = np.tile(floats([0, 1, 2, -2]), (length, 1))
    x[length // 3 :, 1] = -1
    expected = 1 - 2 * (length - length // 3) / length
    y = attended(level, dtype, x, [0, 0, 1, 0], [0, 0, 1, 0])
    assert np.abs(y - expected).max() <= CLOSE[dtype]


@everywhere
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("place", [0, -1])
def test_one_key_that_is_larger_takes_all(level, dtype, length, place):
    # Scores are 8 x 2 x 2 and 8 x 2 x -2: next to nothing is left for the others.
    x = np.tile(floats([-1, 0, 2, -2]), (length, 1))
    x[place, :2] = 1, 1
    y = attended(level, dtype, x, [0, 0, 1, 0], [2, 0, 0, 0])
    assert np.abs(y - 1).max() <= CLOSE[dtype]


@everywhere
def test_sums_of_the_largest_numbers(level, dtype):
    # All levels of query and key are the largest ones, and only the last key is of the other sign. Then all
    # weights and values but the last are the largest.
    x = np.tile(floats([1, 1, 2, -2]), (300, 1))
    x[-1, :2] = -1, -1
    y = attended(level, dtype, x, [0, 0, 50, 0], [100, 0, 0, 0])
    assert np.abs(y - 1).max() <= CLOSE[dtype]


@everywhere
@pytest.mark.parametrize("length", [60, 300, 511])
def test_many_small_weights_count_together(level, dtype, length):
    # The first score is 6.5 above the others, each of which has a weight of 0.0015: less than half a level
    # of 255. All together they take a part that grows with the text.
    x = np.tile(floats([0, 1, 2, -2]), (length, 1))
    x[0, :2] = 1, -1
    y = attended(level, dtype, x, [0, 0, 6.5 / 16, 0], [1, 0, 0, 0])
    rest = (length - 1) * math.exp(-6.5)
    assert np.abs(y - (rest - 1) / (rest + 1)).max() <= CLOSE[dtype]


@everywhere
@pytest.mark.parametrize("size", [1e-34, 1e-20, 1e20])
@pytest.mark.parametrize("length", [30, 120])
def test_values_of_any_size(level, dtype, size, length):
    x = np.tile(floats([0, 1, 2, -2]), (length, 1))
    x[length // 3 :, 1] = 0.5
    y = attended(level, dtype, x, [0, 0, size, 0], [0, 0, 1 / size, 0], size)
    # Beyond 1e-30 levels have no scale, and values count as 0.
    expected = [2 / 3, 0] if size < 1e-30 and dtype == "int8" else [2 / 3]
    assert min(np.abs(y - each).max() for each in expected) <= {"float32": 1e-5}.get(dtype, 0.08)


@everywhere
@pytest.mark.parametrize("length", [255, 300, 520])
@pytest.mark.parametrize("head_dim", [13, 16])
@pytest.mark.parametrize(
    "more",
    [{}, {"reach": 9}, {"modern": 7, "window": 70}, {"positions": 3}],
    ids=["plain", "bias", "modern", "positions"],
)
def test_a_long_text_is_as_in_float64(level, dtype, length, head_dim, more):
    case = EncoderCase(2, 40, 2, head_dim, 50, 0.4, 0, 0, True, "gelu", 2, length, 2, 2, 5, **more)
    check_encoder(case, level, dtype)


@everywhere
@pytest.mark.parametrize("place", [0, 60, 119])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_what_is_not_finite_in_a_long_text_stays_so(level, dtype, place, part):
    # The token's own feature overflows in one of the three; attention must not take it for a level.
    x = np.tile(floats([0, 1, 2, -2]), (120, 1))
    x[place] = 8, 1, 2, -2
    weight = np.zeros((64, 4))
    weight[7] = [3e38, 0, 0, 0]
    plain = linear(np.ones((64, 4)))
    own = layer(
        inner=64,
        **{"query": plain, "key": plain, "value": plain} | {part: linear(weight)},
        attention_output=linear(np.full((4, 64), 0.1)),
    )
    y = Encoder([own], head_dim=64, dtype=dtype, level=level)(floats([x]))[0]
    assert np.isnan(y[place]).all()
    assert np.isnan(y).all() == (part != "query")


@everywhere
@pytest.mark.parametrize("length", [40, 120])
def test_a_neighbor_in_the_batch_changes_nothing(level, dtype, length):
    random = np.random.default_rng(4)
    x = random.standard_normal((2, length, 4)).astype(np.float32)
    own = layer(
        inner=3,
        **{name: linear(random.standard_normal((3, 4))) for name in ("query", "key", "value")},
        attention_output=linear(random.standard_normal((4, 3))),
    )
    encoder = Encoder([own], head_dim=3, dtype=dtype, level=level)
    alone = encoder(x[:1])
    x[1] *= 1000
    assert encoder(x)[:1].tobytes() == alone.tobytes()
    assert math.isfinite(float(np.abs(encoder(x)).max()))
