"""The engine's answers by hand, and against float64 at random sizes, on each level and in each type."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.closeness import assert_close, most_level
from runtime.engines import (
    LEVELS,
    PAIRS,
    EncoderCase,
    LinearCase,
    check_encoder,
    check_linear,
    encoder_case,
    floats,
    layer,
    linear,
    linear_case,
    make_linear,
    zeros,
)
from runtime.reference import activate

from fineprune_runtime import Encoder, EngineError, Linear, Matrix, Norm, SparseLinear, codec

ALL_BITS = np.array(2**32 - 1, np.uint32).view(np.float32)[()]  # a NaN, as erased memory has it

everywhere = pytest.mark.parametrize(("level", "dtype"), PAIRS)
linear_cases = st.composite(lambda draw: linear_case(lambda low, high: draw(st.integers(low, high))))
encoder_cases = st.composite(lambda draw: encoder_case(lambda low, high: draw(st.integers(low, high))))


# -- by hand -----------------------------------------------------------------------------------


@everywhere
def test_a_linear_layer(level, dtype):
    engine = SparseLinear(linear([[1, 0, 2], [0, -1, 0]], [0.5, -1]), dtype=dtype, level=level)
    y = engine(floats([[1, 2, 3], [0, 1, -1], [0, 0, 0]]))
    # 1 + 2 x 3 + 0.5 and -2 - 1; -2 + 0.5 and -1 - 1; the biases. int8: the steps are 3/255 and 2/255 of a
    # token and 2/127 of a row, the error below 3 x 3/255 + 3 x 1/127 + 0.0002
    expected = [[7.5, -3], [-1.5, -2], [0.5, -1]]
    assert np.abs(y - expected).max() <= (0.06 if dtype == "int8" else 0)
    assert y[2].tolist() == [0.5, -1]
    assert engine.nbytes > 0


@everywhere
def test_an_encoder_of_zeros_is_its_biases_and_norms(level, dtype):
    # x + b = (2, 2, 3, 3): centered -1/2, -1/2, 1/2, 1/2, which is also 1/2 wide: (-1, -1, 1, 1) x 2 + 1
    # = (-1, -1, 3, 3). With the second bias (-1, -1, 3, 7): mean 2, squares 9 + 9 + 1 + 25 = 4 x 11.
    own = layer(
        attention_output=linear(np.zeros((4, 1)), [1, 0, 0, -1]),
        attention_norm=Norm(floats([2, 2, 2, 2]), floats([1, 1, 1, 1])),
        ffn_out=linear(np.zeros((4, 2)), [0, 0, 0, 4]),
        output_norm=Norm(floats([1, 1, 1, 0.5]), floats([0, 0, 10, 0])),
    )
    y = Encoder([own], head_dim=1, dtype=dtype, level=level)(floats([[[1, 2, 3, 4]]]))
    root = math.sqrt(11)
    assert y[0, 0] == pytest.approx([-3 / root, -3 / root, 10 + 1 / root, 2.5 / root], rel=1e-6)


@everywhere
def test_attention(level, dtype):
    # Query 1, keys 0 and ln 3, values 4 and 8: weights 1/4 and 3/4, so 7 is added to the first feature.
    # (-3, 0, 4, 0) -> (4, 0, 4, 0) -> (1, -1, 1, -1), and (-6, 1, 8, 1) -> (1, 1, 8, 1): mean 11/4,
    # centered -7/4, -7/4, 21/4, -7/4: a third of root 3 below, and root 3 above.
    own = layer(
        query=linear(np.zeros((1, 4)), [1]),
        key=linear([[0, math.log(3), 0, 0]]),
        value=linear([[0, 0, 1, 0]]),
        attention_output=linear([[1], [0], [0], [0]]),
    )
    encoder = Encoder([own], head_dim=1, dtype=dtype, level=level)
    y = encoder(floats([[[-3, 0, 4, 0], [-6, 1, 8, 1]]]))
    third = math.sqrt(3) / 3
    expected = np.array([[[1, -1, 1, -1], [-third, -third, 3 * third, -third]]])
    # 7 itself is exact to 2^-8 and to a step of about 1/50, by which an entry moves by half as much at most.
    assert np.abs(y - expected).max() <= {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.04}[dtype]
    # Without the second token the first one attends to itself, and 4 is added: (1, 0, 4, 0) as in float64.
    alone = encoder(floats([[[-3, 0, 4, 0], [-6, 1, 8, 1]]]), [[1, 0]])
    exact = (np.array([1, 0, 4, 0]) - 1.25) / math.sqrt((1 + 16) / 4 - 1.25**2)
    assert np.abs(alone[0, 0] - exact).max() <= {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.04}[dtype]
    assert alone[0, 1].tolist() == [0, 0, 0, 0]


@everywhere
def test_a_bias_by_distance(level, dtype):
    # All keys are alike, so only the bias tells them apart: ln 3 for the key itself and for those 2 or more
    # after it, else 0. The first of two queries has the weights 3/4 and 1/4, the second one 1/4 and 3/4.
    # Values 4 and 8 make 5 and 7, which are added to the first feature.
    own = layer(value=linear([[0, 0, 1, 0]]), attention_output=linear([[1], [0], [0], [0]]))
    own = own._replace(bias_rows=np.array([1]))
    bias = floats([[9, 9, 9, 9, 9], [0, 0, math.log(3), 0, math.log(3)]])
    encoder = Encoder([own], head_dim=1, bias=bias, dtype=dtype, level=level)
    tolerance = {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.04}[dtype]
    x = floats([[[-4, 0, 4, 0], [-6, 1, 8, 1]]])
    first = (np.array([1, 0, 4, 0]) - 1.25) / math.sqrt((1 + 16) / 4 - 1.25**2)
    third = math.sqrt(3) / 3
    assert np.abs(encoder(x) - [[first, [-third, -third, 3 * third, -third]]]).max() <= tolerance
    # With a hole between them the second is 3 after the first, whose weights are 1/2, which makes 6.
    apart = encoder(np.insert(x, [1, 1], 5, axis=1), [[1, 0, 0, 1]])
    first = (np.array([2, 0, 4, 0]) - 1.5) / math.sqrt((4 + 16) / 4 - 1.5**2)
    assert np.abs(apart[0, 0] - first).max() <= tolerance
    assert not apart[0, 1:3].any()


@pytest.mark.parametrize(
    ("bias", "rows", "message"),
    [
        (np.zeros((2, 4)), [0], r"a bias of shape \(2, 4\); expected \(rows, 2 \* reach \+ 1\)"),
        (np.zeros(3), [0], r"a bias of shape \(3,\)"),
        (np.zeros((0, 3)), [0], "bias rows is 0; 1 to 65536 can be run"),
        (np.zeros((2, 1)), [0], "bias reach is 0; 1 to 65536 can be run"),
        (floats([[0, 0, 0], [0, 0, np.nan]]), [0], "relative bias: value 5 is not finite"),
        (np.zeros((2, 3)), [2], "layer 0, head 0: adds row 2 of a relative bias that has 2"),
        (np.zeros((2, 3)), [-1], "layer 0, head 0: adds row -1"),
        (None, [0], "layer 0, head 0: adds row 0 of a relative bias that has 0"),
        (np.zeros((2, 3)), [0, 1], r"bias_rows of shape \(2,\); expected a row for each of 1 heads"),
    ],
)
def test_a_bias_that_does_not_fit(bias, rows, message):
    own = layer(value=linear(np.ones((1, 4))), attention_output=linear(np.ones((4, 1))))
    with pytest.raises(EngineError, match=message):
        Encoder([own._replace(bias_rows=np.array(rows))], head_dim=1, bias=bias)


def test_a_bias_comes_before_the_layers():
    encoder = Encoder([layer()], head_dim=1)
    with pytest.raises(EngineError, match="the bias of an encoder is set before its first layer"):
        encoder._set_bias(np.zeros((1, 3), np.float32))


@everywhere
def test_feed_forward(level, dtype):
    # From (1, -1, 1, -1): neurons 2 + 1 = 3 and -1 - 1 = -2, which relu makes 0; (1, 2, 1, -1) has the mean
    # 3/4 and the variance (1/16 + 25/16 + 1/16 + 49/16) / 4 = 19/16.
    own = layer(
        ffn_in=linear([[2, 0, 0, 0], [0, 1, 0, 0]], [1, -1]),
        ffn_out=linear([[0, 0], [1, -5], [0, 0], [0, 0]]),
    )
    encoder = Encoder([own], head_dim=1, activation="relu", dtype=dtype, level=level)
    y = encoder(floats([[[4, 0, 4, 0]]]))
    expected = np.array([0.25, 1.25, 0.25, -1.75]) / math.sqrt(19 / 16)
    assert np.abs(y - expected).max() <= {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.04}[dtype]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_activations(level, activation):
    # Norms that do nothing: their epsilon is 1e30, and their weight its root. From (t, -t) the layer then
    # makes (t + a, -t - a), with a the activation of t. 8e-7 is a dozen roundings; four are the norms'.
    same = Norm(np.full(2, 1e15, np.float32), np.zeros(2, np.float32))
    own = layer(
        hidden=2,
        attention_norm=same,
        ffn_in=linear([[1, 0]]),
        ffn_out=linear([[1], [-1]]),
        output_norm=same,
    )
    t = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -90, 90, 1e4]]).astype(np.float32)
    encoder = Encoder([own], head_dim=1, activation=activation, epsilon=1e30, level=level)
    y = encoder(np.stack([t, -t], axis=1)[None])[0, :, 0].astype(np.float64)
    expected = activate(t.astype(np.float64), activation)
    assert (np.abs(y - t - expected) <= 8e-7 * np.maximum(1, np.abs(t))).all()


@everywhere
def test_one_feature_is_its_bias(level, dtype):
    own = layer(hidden=1)._replace(output_norm=Norm(floats([3]), floats([0.25])))
    y = Encoder([own], head_dim=1, dtype=dtype, level=level)(floats([[[7], [-1]]]))
    assert y.tolist() == [[[0.25], [0.25]]]


# -- against float64 ---------------------------------------------------------------------------


@everywhere
@settings(max_examples=40, deadline=None)
@given(case=linear_cases())
def test_any_linear_layer(level, dtype, case):
    check_linear(case, level, dtype)


@everywhere
@settings(max_examples=40, deadline=None)
@given(case=encoder_cases())
def test_any_encoder(level, dtype, case):
    check_encoder(case, level, dtype)


@everywhere
@pytest.mark.parametrize("columns", [385, 769, 1025, 1600, 5000])
def test_more_columns_than_a_block_has(level, dtype, columns):
    # A block of inputs has 48 kB: 384 rows of 32 floats, 768 of 64 bytes, 1,536 of 32. With skewed rows
    # some have nothing in a block in the middle.
    for density, full in ((0.004, 0), (0.1, 9)):
        case = LinearCase(21, columns, density, full, True, True, False, 35, 2, columns)
        check_linear(case, level, dtype)


@everywhere
def test_a_row_of_which_only_some_blocks_are_used(level, dtype):
    # By hand: ones at the first, a middle and the last input, nothing in whole blocks between them.
    dense = np.zeros((4, 5000), np.float32)
    dense[0, [0, 2500, 4999]] = 1
    dense[1, 4999] = 1
    dense[3, 2500:2502] = 1
    x = np.random.default_rng(0).integers(0, 256, (50, 5000)).astype(np.float32)  # exact in every type
    x[:, 0], x[:, 1] = 0, 255  # so that a step of int8 is 1
    y = SparseLinear(linear(dense), dtype=dtype, level=level)(x)
    expected = np.stack([x[:, 2500] + x[:, 4999], x[:, 4999], np.zeros(50), x[:, 2500] + x[:, 2501]], axis=1)
    # int8: 127 times the scale 1/127 is off by 2^-24
    assert np.abs(y - expected).max() <= (1e-4 if dtype == "int8" else 0)


@everywhere
def test_a_large_layer(level, dtype):
    # Of the shape of one in BERT, so that every loop runs over many blocks: some 10 ms
    case = EncoderCase(1, 768, 3, 64, 1100, 0.1, 30, 2, True, "gelu", 2, 70, 2, 2, 5)
    check_encoder(case, level, dtype)


@everywhere
@pytest.mark.parametrize("mask", [0, 1, 2])
def test_a_large_layer_with_a_bias(level, dtype, mask):
    case = EncoderCase(1, 192, 3, 64, 100, 0.3, 30, 2, True, "gelu", 2, 150, mask, 2, 5, 128)
    check_encoder(case, level, dtype)


@everywhere
@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e4, 1e30])
def test_any_size_of_inputs(level, dtype, size):
    random = np.random.default_rng(4)
    given = make_linear(random, 20, 60, bias=False, density=0.3, full=8)
    x = (random.standard_normal((33, 60)) * size).astype(np.float32)
    y = SparseLinear(given, dtype=dtype, level=level)(x)
    if dtype == "int8" and size in (1e-30, 1e30):  # beyond what a step can be
        assert np.isfinite(y).all()
        return
    assert_close(y, given, x, dtype, level)


@pytest.mark.parametrize("level", LEVELS)
def test_int8_runs_the_levels_of_a_blob_as_they_are_or_makes_its_own(level):
    random = np.random.default_rng(9)
    dense = (random.standard_normal((40, 70)) * 10.0 ** random.integers(-9, 9, (40, 1))).astype(np.float32)
    dense[random.random(dense.shape) < 0.6] = 0
    dense[3] = 0
    # The largest level is not always there: the row's scale can then only come from the blob.
    blob = codec.encode(dense, "int8")
    packed = codec.unpack(blob, dense.shape)
    middle = blob.copy()
    begin = packed.header.size + 4 * len(packed.scales)
    middle[begin : begin + len(packed.values)] = (packed.values // 2).view(np.uint8)
    middle[8:12] = np.frombuffer(codec._checksum(middle).to_bytes(4, "little"), np.uint8)
    for each in (blob, middle):
        packed = codec.unpack(each, dense.shape)
        matrix = Matrix.from_blob(each, dense.shape)
        assert matrix.scales is not None
        engine = SparseLinear(Linear(matrix, None), dtype="int8", level=level)
        # A token of 255 at one input: a step of 1, so every byte is exact, and y is 255 x level x scale.
        y = engine(np.eye(70, dtype=np.float32) * 255).T.astype(np.float64)
        scales = packed.scales.astype(np.float64)[:, None]
        seen = np.divide(y, 255 * scales, out=np.zeros_like(y), where=scales > 0)
        expected = np.zeros(dense.size)
        expected[packed.positions] = packed.values
        expected = expected.reshape(dense.shape)
        largest = np.abs(expected).max(axis=1, keepdims=True)
        step = np.where(largest > most_level(level), largest / most_level(level), 1)
        assert np.abs(seen - np.rint(expected / step) * step).max() < 1e-3


@pytest.mark.parametrize("level", LEVELS)
def test_the_most_that_an_int8_level_is(level):
    # 127.5 scales would round to 128, which as a byte is -128. And a scale that is a lie is not believed.
    most = most_level(level)
    values = floats([most + 0.5, -most - 0.5, 1000, -3])
    scales = floats([1, 1, 1, -1])
    given = Linear(Matrix((4, 1), None, values, scales), None)
    y = SparseLinear(given, dtype="int8", level=level)(floats([[255]]))
    assert y[0] / 255 == pytest.approx([most, -most, 1000, -3], rel=1e-5)


@everywhere
def test_the_largest_inputs_times_the_largest_weights(level, dtype):
    # Of int8 the largest bytes and levels, whose sums of two products some levels put into 16 bits.
    y = SparseLinear(linear([[1] * 8, [-1] * 8, [1, -1] * 4]), dtype=dtype, level=level)(floats([[255] * 8]))
    assert y[0] == pytest.approx([2040, -2040, 0], rel=1e-5)


# -- inputs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    return Encoder([layer()], head_dim=1)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (1, 2, 3), (1, 2, 5), (1, 1, 1, 4)])
def test_hidden_states_of_another_shape(encoder, shape):
    with pytest.raises(EngineError, match=r"expected \(batch, length, 4\)"):
        encoder(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 3, 4), ()])
def test_a_mask_of_another_shape(encoder, shape):
    with pytest.raises(EngineError, match=r"a mask of shape .*; expected \(2, 3\)"):
        encoder(np.zeros((2, 3, 4), np.float32), np.ones(shape))


def test_inputs_of_another_shape():
    engine = SparseLinear(zeros(2, 3))
    for shape in ((3,), (2, 2), (1, 2, 3)):
        with pytest.raises(EngineError, match=r"expected \(tokens, 3\)"):
            engine(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (0, 0, 4), (2**40, 0, 4), (0, 2**40, 4)])
def test_nothing_comes_of_nothing(encoder, shape):
    assert encoder(np.zeros(shape, np.float32)).shape == shape


def test_arrays_in_any_order_and_of_any_type(encoder):
    hidden = np.random.default_rng(1).standard_normal((3, 5, 4)).astype(np.float32)
    expected = encoder(hidden)
    assert encoder(np.asfortranarray(hidden)).tobytes() == expected.tobytes()
    assert encoder(hidden[::-1, ::-1])[::-1, ::-1].tobytes() == expected.tobytes()
    assert encoder(hidden.astype(np.float64)).tobytes() == expected.tobytes()
    hidden.setflags(write=False)
    assert encoder(hidden, np.ones((3, 5), np.uint8)).tobytes() == expected.tobytes()


def test_masks_are_of_any_numbers(encoder):
    # 256 is 0 as a byte, and 0.5 as a whole number
    hidden = np.ones((1, 4, 4), np.float32) * [1, 2, 3, 4]
    y = encoder(hidden, np.array([[256, 0.5, 0, -1]]))
    assert (y != 0).any(axis=2).tolist() == [[True, True, False, True]]


@pytest.mark.parametrize("make", [lambda: Encoder([layer()], head_dim=1), lambda: SparseLinear(zeros(2, 3))])
def test_engines_are_neither_copied_nor_pickled(make):
    # A copy would free the same memory twice.
    for do in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="make another one"):
            do(make())


def test_matrices():
    dense = floats([[0, 2, 0], [-1, 0, 0]])
    matrix = Matrix.from_dense(dense)
    assert matrix.shape == (2, 3)
    assert matrix.positions.tolist() == [1, 3]
    assert matrix.values.tolist() == [2, -1]
    assert matrix.density == 2 / 6
    assert matrix.to_dense().tolist() == dense.tolist()
    assert Matrix.from_dense(np.zeros((0, 3))).density == 0
    assert Matrix.from_dense(dense[:, 1:2]).to_dense().tolist() == [[2], [0]]
    whole = Matrix.from_dense([[1, 2], [3, 4]])
    assert whole.positions is None
    assert whole.density == 1
    assert whole.to_dense().tolist() == [[1, 2], [3, 4]]
    with pytest.raises(EngineError, match="2 dimensions, and this array 1"):
        Matrix.from_dense(np.zeros(3))


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_a_matrix_of_a_blob_is_what_the_blob_decodes_to(values):
    random = np.random.default_rng(0)
    for density in (0, 0.1, 0.6, 1):
        dense = (random.standard_normal((7, 30)) * (random.random((7, 30)) < density)).astype(np.float32)
        blob = codec.encode(dense, values)
        matrix = Matrix.from_blob(blob, (7, 30))
        assert matrix.to_dense().tobytes() == codec.decode(blob, (7, 30)).tobytes()
        assert (matrix.scales is not None) == (values in ("int8", "int4"))
    with pytest.raises(codec.CodecError):
        Matrix.from_blob(blob, (30, 7))


def test_no_warnings_of_numpy():
    # A constant that overflows when a dead neuron is dropped is an error, and nothing is printed beside it.
    own = layer(ffn_in=linear(np.zeros((2, 4)), [3e38, 0]), ffn_out=linear(np.full((4, 2), 3.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EngineError, match="not finite"):
            Encoder([own], head_dim=1)
