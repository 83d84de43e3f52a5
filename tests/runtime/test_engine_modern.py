"""What ModernBERT's layers have beside BERT's: rotated queries and keys, windows, gates and norms before."""

import math

import numpy as np
import pytest
from runtime.engines import LEVELS, PAIRS, floats, layer, linear

from fineprune_runtime import Encoder, EngineError, Matrix, Norm
from fineprune_runtime.layers import Linear

pytestmark = pytest.mark.skipif(not PAIRS, reason="the engine's libraries were not built")
everywhere = pytest.mark.parametrize(("level", "dtype"), PAIRS)

# A norm that does nothing: its epsilon is 1e30, and its weight the root of it.
SAME = Norm(np.full(2, 1e15, np.float32), np.zeros(2, np.float32))
X = floats([[[0, 0], [1, -1], [5, -5]]])


def attending(**parts):
    """A layer that adds the mean of the tokens it attends to: from (t, -t) it makes (t + mean, ...)."""
    return layer(
        hidden=2,
        inner=2,
        value=linear([[1, 0], [0, 0]]),
        attention_output=linear([[1, 0], [-1, 0]]),
        attention_norm=SAME,
        output_norm=SAME,
        **parts,
    )


def means(encoder, mask=None):
    """What each token of X gets."""
    return (encoder(X, mask)[0, :, 0] - X[0, :, 0]).tolist()


@pytest.mark.parametrize("level", LEVELS)
def test_queries_and_keys_are_rotated(level):
    # A quarter turn a token: scores of ln 3 x the cosine of the turns between, and weights of 3, 1 and 1/3.
    parts = {
        "query": linear(np.zeros((2, 2)), [math.log(3), 0]),
        "key": linear(np.zeros((2, 2)), [2**0.5, 0]),
    }
    own = attending(**parts, rotary=floats([math.pi / 2]))
    encoder = Encoder([own], head_dim=2, epsilon=1e30, level=level)
    assert means(encoder) == pytest.approx([8 / 13, 8 / 5, 48 / 13], rel=1e-5)
    # Places count, not tokens: with a hole there are two turns between the others.
    assert means(encoder, [[1, 0, 1]])[::2] == pytest.approx([0.5, 4.5], rel=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_a_window(level):
    near = Encoder([attending(window=1)], head_dim=2, epsilon=1e30, level=level)
    assert means(near) == pytest.approx([0.5, 2, 3])
    assert means(near, [[1, 0, 1]])[::2] == pytest.approx([0, 5])
    # A hidden first token sees what is near it, if anything is.
    assert means(near, [[0, 1, 1]]) == pytest.approx([1, 3, 3])
    assert means(near, [[0, 0, 1]])[::2] == pytest.approx([0, 5])
    assert means(Encoder([attending(window=0)], head_dim=2, epsilon=1e30, level=level)) == [0, 1, 5]
    wide = Encoder([attending(window=2)], head_dim=2, epsilon=1e30, level=level)
    assert means(wide) == pytest.approx([2, 2, 2])


@everywhere
def test_norms_before_and_a_gate(level, dtype):
    # (3, -3, 0) goes on as it is, and the feed-forward adds 1 x 2 x 1 to its first feature.
    own = layer(
        hidden=3,
        ffn_in=linear(np.zeros((1, 3)), [1]),
        ffn_gate=linear(np.zeros((1, 3)), [2]),
        ffn_out=linear([[1], [0], [0]]),
    )
    how = {"head_dim": 1, "activation": "relu", "dtype": dtype, "level": level}
    expected = (np.array([5, -3, 0]) - 2 / 3) / math.sqrt(98 / 9)
    tolerance = {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.04}[dtype]
    assert np.abs(Encoder([own], **how, pre_norm=True)(floats([[[3, -3, 0]]])) - expected).max() <= tolerance
    size = math.sqrt(6)  # after a norm: (3, -3, 0) / size, then 2 more, with the mean 2/3
    x = np.array([3 / size + 2, -3 / size, 0]) - 2 / 3
    expected = x / math.sqrt((x**2).mean())
    assert np.abs(Encoder([own], **how)(floats([[[3, -3, 0]]])) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"window": -1}, "window is -1; 0 to 1073741824 can be run, or None"),
        ({"window": 2**40}, "window is 1099511627776"),
        ({"rotary": floats([1, 2])}, r"an array of shape \(2,\), expected \(1,\)"),
        ({"rotary": floats([math.nan])}, "layer 0, rotary: frequency 0 is not finite"),
        ({"ffn_gate": linear([[1, 2]])}, "layer 0, feed-forward gate: is 1 x 2, expected 2 x 2"),
        ({"ffn_gate": linear([[1], [2]])}, "layer 0, feed-forward gate: is 2 x 1, expected 2 x 2"),
        ({"ffn_gate": linear([[1, math.inf], [2, 3]])}, "ffn_gate: value 1 is not finite"),
    ],
)
def test_what_does_not_fit(parts, message):
    whole = {"ffn_in": linear(np.ones((2, 2))), "ffn_out": linear(np.ones((2, 2)))} | parts
    with pytest.raises(EngineError, match=message):
        Encoder([attending(**whole)], head_dim=2)


def test_heads_of_odd_size_are_not_rotated():
    with pytest.raises(EngineError, match="layer 0, heads of 1 cannot be rotated"):
        Encoder([attending(rotary=floats([]))], head_dim=1)


def test_parts_of_a_matrix():
    matrix = Matrix((4, 2), np.array([1, 2, 6]), floats([5, 6, 7]), floats([1, 2, 3, 4]))
    upper, lower = matrix.parts(2)
    assert upper.to_dense().tolist() == [[0, 5], [6, 0]]
    assert lower.to_dense().tolist() == [[0, 0], [7, 0]]
    assert (upper.scales.tolist(), lower.scales.tolist()) == ([1, 2], [3, 4])
    assert [part.to_dense().tolist() for part in linear([[1], [2]]).weight.parts(2)] == [[[1]], [[2]]]
    halves = Linear(matrix, floats([1, 2, 3, 4])).parts(2)
    assert [half.bias.tolist() for half in halves] == [[1, 2], [3, 4]]
    assert Linear(matrix, None).parts(4)[3].bias is None
