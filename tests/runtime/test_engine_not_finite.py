"""Numbers that are not finite make their text nan, and no other."""

import math

import numpy as np
import pytest
from hypothesis import strategies as st
from runtime.engines import (
    PAIRS,
    EncoderCase,
    assert_near,
    encoder_case,
    floats,
    layer,
    linear,
    linear_case,
    make_hidden,
    make_layers,
    make_linear,
)
from runtime.reference import reference_encoder

from fineprune_runtime import Encoder, SparseLinear

ALL_BITS = np.array(2**32 - 1, np.uint32).view(np.float32)[()]  # a NaN, as erased memory has it
everywhere = pytest.mark.parametrize(("level", "dtype"), PAIRS)
linear_cases = st.composite(lambda draw: linear_case(lambda low, high: draw(st.integers(low, high))))
encoder_cases = st.composite(lambda draw: encoder_case(lambda low, high: draw(st.integers(low, high))))


@everywhere
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, ALL_BITS, 3e38])
def test_what_is_not_finite_makes_its_text_nan_and_no_other(level, dtype, odd):
    case = EncoderCase(2, 40, 2, 12, 50, 0.4, 9, 0, True, "gelu", 4, 37, 0, 2, 11)
    layers, (hidden, _) = make_layers(case), make_hidden(case)
    encoder = Encoder(layers, head_dim=12, dtype=dtype, threads=2, level=level)
    expected = encoder(hidden)
    broken = hidden.copy()
    broken[1, 5, 7] = broken[3] = odd
    y = encoder(broken)
    assert y[[0, 2]].tobytes() == expected[[0, 2]].tobytes()
    if odd != 3e38:  # a number, if a large one
        assert np.isnan(y[[1, 3]]).all()
    assert encoder(hidden).tobytes() == expected.tobytes()  # nothing of it is left behind
    masked = np.ones((4, 37))
    masked[:, 20:] = 0
    y = encoder(broken, masked)
    if odd != 3e38:
        assert np.isnan(y[[1, 3], :20]).all()
    assert not y[:, 20:].any()


@everywhere
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, ALL_BITS])
def test_what_is_not_finite_makes_its_token_nan_and_no_other(level, dtype, odd):
    given = make_linear(np.random.default_rng(2), 30, 50, density=0.3, full=9)
    engine = SparseLinear(given, dtype=dtype, level=level)
    x = np.random.default_rng(3).standard_normal((40, 50)).astype(np.float32)
    expected = engine(x)
    for place in (0, 23, 49):  # every output is NaN, also one whose row has no weight for it: torch's 0 x NaN
        broken = x.copy()
        broken[[1, 17, 39], place] = odd
        y = engine(broken)
        assert np.isnan(y[[1, 17, 39]]).all()
        others = np.delete(np.arange(40), [1, 17, 39])
        assert y[others].tobytes() == expected[others].tobytes()


@everywhere
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("part", ["query", "value", "ffn_in"])
def test_what_overflows_on_the_way_is_nan(level, dtype, activation, part):
    # Weights of 3e38 make infinity of 8, in one neuron of many: the sum, its norm and all after it are NaN,
    # and the maximum of a range or of scores does not lose it.
    weight = np.zeros((64, 4))
    weight[5] = [3e38, 0, 0, 0]
    weight[6] = [-3e38, 0, 0, 0]
    odd = linear(weight, np.linspace(-1, 1, 64))
    own = layer(
        hidden=4,
        inner=64,
        **{
            "query": linear(np.ones((64, 4))),
            "key": linear(np.ones((64, 4))),
            "value": linear(np.ones((64, 4))),
        }
        | {"attention_output": linear(np.full((4, 64), 0.1)), "ffn_in": linear(np.ones((64, 4)))}
        | {"ffn_out": linear(np.full((4, 64), 0.1)), part: odd},
    )
    encoder = Encoder([own], head_dim=64, activation=activation, dtype=dtype, level=level, epsilon=1e-30)
    y = encoder(floats([[[8, 0, 0, 1], [-8, 2, 0, 0], [8, 1, 1, 0]]]))
    assert not np.isfinite(y).any()


@everywhere
@pytest.mark.parametrize("odd", [1e20, -3e30])
@pytest.mark.parametrize("part", ["attention_output", "ffn_out"])
def test_a_variance_that_overflows_is_nan(level, dtype, part, odd):
    # The squares of 1e20 are infinity: 1 over their root is 0, and every token would get the norm's bias.
    parts = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
    plain = dict.fromkeys(parts, linear(np.eye(4)))
    own = layer(hidden=4, inner=4, **plain | {part: linear(np.eye(4), [0, odd, 0, 0])})
    encoder = Encoder([own], head_dim=4, dtype=dtype, level=level)
    assert np.isnan(encoder(floats([[[8, 0, 0, 1], [-8, 2, 0, 0]]]))).all()


@everywhere
def test_masked_tokens_may_hold_anything(level, dtype):
    case = EncoderCase(2, 24, 2, 8, 30, 0.5, 0, 0, True, "relu", 3, 20, 2, 1, 6)
    layers, (hidden, mask) = make_layers(case), make_hidden(case)
    encoder = Encoder(layers, head_dim=8, activation="relu", dtype=dtype, level=level)
    mask[:, 0] = [1, 0, 1]
    expected = encoder(hidden, mask)
    masked = mask == 0
    hidden[:, 1:][masked[:, 1:]] = math.nan
    assert encoder(hidden, mask).tobytes() == expected.tobytes()
    hidden[1, 0] = math.nan  # the first place is computed; no other sees it
    y = encoder(hidden, mask)
    assert np.isnan(y[1, 0]).all()
    assert y[[0, 2]].tobytes() + y[1, 1:].tobytes() == expected[[0, 2]].tobytes() + expected[1, 1:].tobytes()
    hidden[1, 0] = 0.5
    expected = encoder(hidden, mask)
    assert_near(expected, reference_encoder(layers, np.nan_to_num(hidden), mask, 8, "relu", 1e-12), dtype)
