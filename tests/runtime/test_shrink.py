"""Dead heads and neurons, case by case; and that a layer without them says the same."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.engines import make_layer
from runtime.reference import reference_encoder

from fineprune_runtime import EngineError, Layer, Linear, Matrix, Norm
from fineprune_runtime.shrink import shrunk


def floats(values):
    return np.array(values, np.float32)


def linear(weight, bias=None):
    return Linear(Matrix.from_dense(floats(weight)), None if bias is None else floats(bias))


def layer(**parts):
    """2 features, 2 heads of one value each, 2 neurons; nothing is dead."""
    plain = Norm(floats([1, 1]), floats([0, 0]))
    matrix = linear([[1, 2], [3, 4]], [5, 6])
    return Layer(
        **dict.fromkeys(("query", "key", "value", "attention_output", "ffn_in", "ffn_out"), matrix)
        | {"attention_norm": plain, "output_norm": plain}
        | parts
    )


def dense(part):
    return part.weight.to_dense().tolist(), None if part.bias is None else part.bias.tolist()


def test_nothing_dead():
    whole = layer()
    assert shrunk(whole, 1, "gelu") is whole
    assert shrunk(whole, 2, "gelu") is whole


def test_a_head_that_nothing_reads():
    small = shrunk(layer(attention_output=linear([[1, 0], [3, 0]], [5, 6])), 1, "gelu")
    for part in (small.query, small.key, small.value):
        assert dense(part) == ([[1, 2]], [5])
    assert dense(small.attention_output) == ([[1], [3]], [5, 6])
    assert dense(small.ffn_in) == ([[1, 2], [3, 4]], [5, 6])


def test_a_head_without_values_gives_its_bias():
    # The second head's value is always 10: 2 x 10 and 4 x 10 go into the bias.
    small = shrunk(layer(value=linear([[1, 2], [0, 0]], [5, 10])), 1, "gelu")
    assert dense(small.value) == ([[1, 2]], [5])
    assert dense(small.attention_output) == ([[1], [3]], [5 + 20, 6 + 40])


def test_heads_keep_their_rows_of_the_bias():
    small = shrunk(layer(value=linear([[0, 0], [1, 2]]), bias_rows=np.array([5, 3])), 1, "gelu")
    assert small.bias_rows.tolist() == [3]
    whole = layer(bias_rows=np.array([5, 3]))
    assert shrunk(whole, 1, "gelu") is whole


def test_a_head_lives_while_one_of_its_rows_does():
    # As one head of two rows: its second row gives a constant, but the first does not.
    whole = layer(value=linear([[1, 2], [0, 0]], [5, 10]))
    assert shrunk(whole, 2, "gelu") is whole
    whole = layer(attention_output=linear([[1, 0], [3, 0]]))
    assert shrunk(whole, 2, "gelu") is whole


def test_empty_queries_and_keys_do_not_kill_a_head():
    # Without them it takes the mean of the values, which is no constant.
    whole = layer(query=linear([[0, 0], [0, 0]], [1, 1]), key=linear([[0, 0], [0, 0]]))
    assert shrunk(whole, 1, "gelu") is whole


def test_all_heads_dead():
    small = shrunk(layer(value=linear([[0, 0], [0, 0]], [1, 2])), 1, "gelu")
    for part in (small.query, small.key, small.value):
        assert part.weight.shape == (0, 2)
        assert part.bias.shape == (0,)
    assert small.attention_output.weight.shape == (2, 0)
    assert small.attention_output.bias.tolist() == [5 + 1 + 4, 6 + 3 + 8]


def test_a_neuron_that_nothing_reads():
    small = shrunk(layer(ffn_out=linear([[0, 2], [0, 4]])), 1, "gelu")
    assert dense(small.ffn_in) == ([[3, 4]], [6])
    assert small.ffn_out.weight.to_dense().tolist() == [[2], [4]]
    assert small.ffn_out.bias.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("activation", "bias", "given"),
    [
        ("relu", 2.0, 2.0),
        ("relu", -2.0, 0.0),
        ("gelu", 1.0, 0.5 * (1 + math.erf(math.sqrt(0.5)))),
        ("gelu_tanh", 1.0, 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))),
        ("gelu", 0.0, 0.0),
    ],
)
def test_a_neuron_that_nothing_reaches_gives_a_constant(activation, bias, given):
    small = shrunk(layer(ffn_in=linear([[0, 0], [3, 4]], [bias, 6])), 1, activation)
    assert dense(small.ffn_in) == ([[3, 4]], [6])
    assert small.ffn_out.weight.to_dense().tolist() == [[2], [4]]
    assert small.ffn_out.bias == pytest.approx([5 + 1 * given, 6 + 3 * given], rel=1e-7)


GATE = linear([[1, 0], [0, 0]], [0, 7])


@pytest.mark.parametrize(
    ("ffn_in", "gate", "alive", "constant"),
    [
        (linear([[1, 2], [3, 4]]), GATE, [0, 1], 0),  # the second one is 7 x gelu(...), no constant
        (linear([[1, 2], [3, 4]]), linear([[1, 0], [0, 0]]), [0], 0),  # its gate is always 0
        (linear([[1, 2], [0, 0]]), linear([[1, 0], [0, 1]]), [0], 0),  # gelu(0) is 0
        (linear([[1, 2], [0, 0]], [0, 1]), linear([[1, 0], [0, 1]]), [0, 1], 0),
        (linear([[1, 2], [0, 0]], [0, 1]), GATE, [0], 7 * 0.5 * (1 + math.erf(math.sqrt(0.5)))),
    ],
)
def test_a_neuron_behind_a_gate(ffn_in, gate, alive, constant):
    small = shrunk(layer(ffn_in=ffn_in, ffn_gate=gate), 1, "gelu")
    assert small.ffn_in.weight.to_dense().tolist() == ffn_in.weight.to_dense()[alive].tolist()
    assert small.ffn_gate.weight.to_dense().tolist() == gate.weight.to_dense()[alive].tolist()
    assert small.ffn_out.weight.to_dense().tolist() == [[1, 2][: len(alive)], [3, 4][: len(alive)]]
    assert small.ffn_out.bias == pytest.approx([5 + 2 * constant, 6 + 4 * constant], rel=1e-6)


def test_a_gate_that_does_not_fit_is_left_to_the_engine():
    whole = layer(ffn_gate=linear([[0, 0]]))
    assert shrunk(whole, 1, "gelu") is whole


def test_without_biases():
    small = shrunk(
        layer(value=linear([[1, 2], [0, 0]]), attention_output=linear([[1, 2], [3, 4]])), 1, "gelu"
    )
    assert dense(small.value) == ([[1, 2]], None)
    assert dense(small.attention_output) == ([[1], [3]], [0, 0])


def test_scales_go_with_their_rows():
    scaled = Matrix((2, 2), np.array([0, 1]), floats([1, 2]), floats([0.25, 0.5]))
    small = shrunk(layer(value=Linear(scaled, None), query=Linear(scaled, None)), 1, "gelu")
    assert small.value.weight.scales.tolist() == [0.25]
    assert small.query.weight.scales.tolist() == [0.25]
    out = Linear(Matrix((2, 2), np.array([0, 2]), floats([1, 2]), floats([0.25, 0.5])), None)
    small = shrunk(layer(attention_output=out), 1, "gelu")
    assert small.attention_output.weight.scales.tolist() == [0.25, 0.5]


def test_stored_zeros_are_alive():
    # A blob may store the few zeros of a full matrix; that they are zero is not looked at.
    whole = layer(value=Linear(Matrix((2, 2), None, np.zeros(4, np.float32)), None))
    assert shrunk(whole, 1, "gelu") is whole


@settings(max_examples=150, deadline=None)
@given(
    heads=st.integers(0, 4),
    head_dim=st.integers(1, 5),
    ffn=st.integers(0, 12),
    density=st.sampled_from([0.0, 0.05, 0.2, 0.6, 1.0]),
    dead=st.integers(0, 3),
    bias=st.booleans(),
    activation=st.sampled_from(["gelu", "gelu_tanh", "relu"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_output_stays(heads, head_dim, ffn, density, dead, bias, activation, seed):
    random = np.random.default_rng(seed)
    whole = make_layer(random, 6, heads, head_dim, ffn, dead=dead, density=density, bias=bias)
    small = shrunk(whole, head_dim, activation)
    hidden = random.standard_normal((2, 5, 6))
    mask = [[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]
    outputs = [
        reference_encoder([each], hidden, mask, head_dim, activation, 1e-12) for each in (whole, small)
    ]
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-6
    if dead == 3:
        assert small.value.weight.shape[0] == small.ffn_in.weight.shape[0] == 0
    if dead and heads:
        assert small.value.weight.shape[0] < heads * head_dim
    # What is left is alive, and nothing was added.
    assert shrunk(small, head_dim, activation) is small
    for part, before in zip(small, whole, strict=True):
        if isinstance(part, Linear):
            assert len(part.weight.values) <= len(before.weight.values)
            assert np.isin(part.weight.values, before.weight.values).all()


# -- what cannot be shrunk -----------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [0, -1, 3])
def test_heads_that_are_not_whole_are_left_to_the_engine(head_dim):
    whole = layer(value=linear([[0, 0], [0, 0]]))
    assert shrunk(whole, head_dim, "gelu") is whole


def test_matrices_that_do_not_fit_are_left_to_the_engine():
    longer = linear([[1, 2], [0, 0], [5, 6]])
    for part in ("query", "key", "value", "ffn_in"):
        whole = layer(**{part: longer})
        assert shrunk(whole, 1, "gelu") is whole


def matrix(positions, values, shape=(2, 2), scales=None):
    given = None if positions is None else np.array(positions, np.int64)
    return Matrix(shape, given, floats(values), None if scales is None else floats(scales))


@pytest.mark.parametrize("name", ["query", "key", "value", "attention_output", "ffn_in", "ffn_out"])
@pytest.mark.parametrize(
    ("wrong", "bias", "message"),
    [
        (matrix([-1], [1]), None, "begin with -1 and end with -1; they rise, and end below 4"),
        (matrix([0, 4], [1, 2]), None, "begin with 0 and end with 4"),
        (matrix([2**62], [1]), None, "end below 4"),
        (matrix([1, 0], [1, 2]), None, "they rise"),
        (matrix([1, 1], [1, 2]), None, "they rise"),
        (matrix([0, 1], [1]), None, r"values of shape \(1,\) for 4 elements"),
        (matrix(None, [1, 2, 3]), None, r"values of shape \(3,\) for 4 elements"),
        (matrix([0, 1], [1, math.nan]), None, "value 1 is not finite"),
        (matrix([0], [math.inf]), None, "value 0 is not finite"),
        (matrix([0], [1]), [1], r"a bias of shape \(1,\) for 2 outputs"),
        (matrix([0], [1]), [0, math.inf], "bias 1 is not finite"),
        (matrix([0], [1], scales=[1, 1, 1]), None, r"a scale of shape \(3,\) for 2 outputs"),
        (matrix([0], [1], scales=[math.nan, 1]), None, "scale 0 is not finite"),
        (matrix([], [], shape=(2**50, 2)), None, f"is {2**50} x 2; at most 1048576 x 65536 can be run"),
        (matrix([], [], shape=(2, -1)), None, "is 2 x -1"),
    ],
)
def test_what_is_wrong_is_found_before_it_could_be_dropped(name, wrong, bias, message):
    part = Linear(wrong, None if bias is None else floats(bias))
    with pytest.raises(EngineError, match=f"^{name}: .*{message}"):
        shrunk(layer(**{name: part}), 1, "gelu")
