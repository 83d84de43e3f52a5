"""Random layers for the sparse engine, and how far from exact arithmetic its answers may be.

A case is drawn by a function `pick(low, high)` of whole numbers, both ends included: hypothesis' or a random
generator's. Its arrays come from its own seed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from runtime.closeness import assert_close
from runtime.reference import reference_encoder

from fineprune_runtime import Encoder, Layer, Linear, Matrix, Norm, SparseLinear, dtypes, levels
from fineprune_runtime.layers import Relative

Pick = Callable[[int, int], int]

PAIRS = [(level, dtype) for level in levels() for dtype in dtypes(level)]  # all that runs here, best first
LEVELS = levels()
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
DENSITIES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.8, 1.0)
BLOCKS = ((1, 1), (1, 1), (4, 1), (4, 2), (4, 4))  # outputs and inputs whose weights are kept together

# Of a whole encoder, the root mean square of the error over that of the answer. A product's terms are off by
# 2^-8.8 (bfloat16: two factors, each rounded by up to 2^-8) or by 0.8 % (int8: of 255 steps a standard
# deviation takes some 40, and rounding is off by 0.3 of one). A layer adds two such products to an input that
# stays as it is; the second reads what the first has made. So 4 x 2^-8.8 and 3 x 0.8 % of two layers.
RMS = {"float32": 3e-6, "bfloat16": 9e-3, "int8": 2.5e-2}


class LinearCase(NamedTuple):
    """A linear layer and what is put into it."""

    rows: int
    columns: int
    density: float
    full: int
    """Rows among the others of which all elements are stored."""
    skewed: bool
    """Each row has a density of its own."""
    bias: bool
    scales: bool
    """Its values are int8 levels times these."""
    tokens: int
    threads: int
    seed: int
    block: tuple[int, int] = (1, 1)


class EncoderCase(NamedTuple):
    """Encoder layers and hidden states."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    ffn: int
    density: float
    full: int
    dead: int
    """0: none; 1: a head and neurons that nothing reaches; 2: ones that nothing reads; 3: all of them."""
    bias: bool
    activation: str
    batch: int
    length: int
    mask: int
    """0: none; 1: padding at the end; 2: any token; 3: one sequence has no token at all."""
    threads: int
    seed: int
    reach: int = 0
    """Of a bias by distance; 0: there is none."""
    modern: int = 0
    """As binary digits: 1: pre-norm, 2: a gate, 4: rotated queries and keys, if heads are even."""
    window: int | None = None
    """Of every second layer, the first one not."""
    positions: int = 0
    """Products with positions, as binary digits: 1: of queries, 2: of keys."""
    block: tuple[int, int] = (1, 1)


def linear_case(pick: Pick, rows: int = 50, columns: int = 90, tokens: int = 140) -> LinearCase:
    """One case, up to the given sizes."""
    wanted = pick(0, columns)
    return LinearCase(
        rows=pick(0, rows),
        columns=wanted,
        density=DENSITIES[pick(0, len(DENSITIES) - 1)],
        full=(0, 0, 1, 8, 13)[pick(0, 4)],
        skewed=bool(pick(0, 1)),
        bias=bool(pick(0, 1)),
        scales=pick(0, 3) == 3,
        tokens=(0, 1, pick(1, 40), pick(1, tokens))[pick(0, 3)],
        threads=pick(1, 3),
        seed=pick(0, 2**32 - 1),
        block=BLOCKS[pick(0, len(BLOCKS) - 1)],
    )


def encoder_case(pick: Pick) -> EncoderCase:
    """One case. A norm of fewer than 5 features can divide by next to nothing, which no tolerance covers."""
    return EncoderCase(
        layers=pick(1, 2),
        hidden=(16, 64, pick(5, 70))[pick(0, 2)],
        heads=pick(0, 4),
        head_dim=(16, pick(1, 40), 2 * pick(0, 12) + 1)[pick(0, 2)],
        ffn=(0, pick(1, 100), 64)[pick(0, 2)],
        density=DENSITIES[pick(0, len(DENSITIES) - 1)],
        full=(0, 0, 9)[pick(0, 2)],
        dead=pick(0, 3),
        bias=bool(pick(0, 1)),
        activation=ACTIVATIONS[pick(0, 2)],
        batch=pick(0, 4),
        length=(0, 1, pick(1, 20), pick(1, 45), pick(46, 90), pick(108, 130))[pick(0, 5)],
        mask=pick(0, 3),
        threads=pick(1, 3),
        seed=pick(0, 2**32 - 1),
        reach=(0, 0, pick(1, 100))[pick(0, 2)],
        modern=(0, pick(0, 7))[pick(0, 1)],
        window=(None, pick(0, 70))[pick(0, 1)],
        positions=(0, 0, pick(1, 3))[pick(0, 2)],
        block=BLOCKS[pick(0, len(BLOCKS) - 1)],
    )


def make_matrix(
    random: np.random.Generator,
    rows: int,
    columns: int,
    density: float = 1.0,
    full: int = 0,
    skewed: bool = False,
    scales: bool = False,
    block: tuple[int, int] = (1, 1),
) -> Matrix:
    """Of normal values, so that y = W x is of about the size of x; `full` random rows are dense.

    Of a block, rows keep the same columns; a skewed one is kept by some of its rows.
    """
    share = np.full((rows, 1), density)
    if skewed:
        share = np.minimum(1.0, density * random.exponential(1.0, (rows, 1)))
    share[random.permutation(rows)[:full]] = 1.0
    drawn = random.random((-(-rows // block[0]), -(-columns // block[1])))
    kept = np.kron(drawn, np.ones(block))[:rows, :columns] < share
    spread = 0.7 / np.sqrt(np.maximum(1, kept.sum(axis=1, keepdims=True)))
    dense = (random.standard_normal((rows, columns)) * spread * kept).astype(np.float32)
    if not scales:
        return Matrix.from_dense(dense)
    step = np.abs(dense).max(axis=1, initial=0).astype(np.float32) / np.float32(127)
    levels = np.rint(np.divide(dense, step[:, None], out=np.zeros_like(dense), where=step[:, None] > 0))
    return Matrix.from_dense((levels * step[:, None]).astype(np.float32))._replace(scales=step)


def make_linear(
    random: np.random.Generator, rows: int, columns: int, bias: bool = True, **how: Any
) -> Linear:
    """A matrix of `make_matrix`, and a small bias."""
    given = (0.1 * random.standard_normal(rows)).astype(np.float32) if bias else None
    return Linear(make_matrix(random, rows, columns, **how), given)


def make_norm(random: np.random.Generator, hidden: int) -> Norm:
    """Near 1 and near 0."""
    weight, bias = 1 + 0.1 * random.standard_normal(hidden), 0.1 * random.standard_normal(hidden)
    return Norm(weight.astype(np.float32), bias.astype(np.float32))


def make_layer(
    random: np.random.Generator,
    hidden: int,
    heads: int,
    head_dim: int,
    ffn: int,
    dead: int = 0,
    **how: Any,
) -> Layer:
    """An encoder layer; for `dead` see `EncoderCase`."""
    inner = heads * head_dim
    layer = Layer(
        *(make_linear(random, inner, hidden, **how) for _ in range(3)),
        make_linear(random, hidden, inner, **how),
        make_norm(random, hidden),
        make_linear(random, ffn, hidden, **how),
        make_linear(random, hidden, ffn, **how),
        make_norm(random, hidden),
    )
    if not dead:
        return layer
    head, neurons = np.zeros(inner, np.bool_), random.random(ffn) < 0.4
    head[:head_dim] = True
    if dead == 3:
        head[:] = neurons[:] = True
    if dead == 2:
        return layer._replace(
            attention_output=emptied(layer.attention_output, columns=head),
            ffn_out=emptied(layer.ffn_out, columns=neurons),
        )
    return layer._replace(value=emptied(layer.value, rows=head), ffn_in=emptied(layer.ffn_in, rows=neurons))


def emptied(linear: Linear, rows: Any = (), columns: Any = ()) -> Linear:
    """Without the weights of some outputs or inputs."""
    dense = linear.weight.to_dense()
    dense[np.asarray(rows, np.bool_).nonzero()[0]] = 0
    dense[:, np.asarray(columns, np.bool_).nonzero()[0]] = 0
    return linear._replace(weight=Matrix.from_dense(dense))


def make_layers(case: EncoderCase) -> list[Layer]:
    """The layers of a case."""
    random = np.random.default_rng(case.seed)
    how = {
        "density": case.density,
        "full": case.full,
        "bias": case.bias,
        "dead": case.dead,
        "block": case.block,
    }
    layers = [
        make_layer(random, case.hidden, case.heads, case.head_dim, case.ffn, **how)
        for _ in range(case.layers)
    ]
    for index, each in enumerate(layers):
        if case.modern & 2:
            how = {"density": case.density, "full": case.full, "bias": case.bias}
            layers[index] = each._replace(ffn_gate=make_linear(random, case.ffn, case.hidden, **how))
        if case.modern & 4 and case.head_dim % 2 == 0:
            angles = 2 * random.random(case.head_dim // 2).astype(np.float32)
            layers[index] = layers[index]._replace(rotary=angles)
        positions = ("position_key", "position_query") if case.positions else ()
        for number, name in enumerate(positions):
            if case.positions & (1 + number):
                inner = case.heads * case.head_dim
                layers[index] = layers[index]._replace(**{name: make_linear(random, inner, case.hidden)})
        if index % 2:
            layers[index] = layers[index]._replace(window=case.window)
    if not case.reach:
        return layers
    return [each._replace(bias_rows=random.permutation(case.heads + 1)[: case.heads]) for each in layers]


def make_bias(case: EncoderCase) -> Any:
    """The bias of a case, with a row more than there are heads; None where it has none."""
    random = np.random.default_rng([case.seed, 2])
    shape = (case.heads + 1, 2 * case.reach + 1)
    return 2 * random.standard_normal(shape).astype(np.float32) if case.reach else None


def make_relative(case: EncoderCase) -> Relative | None:
    """The embeddings of distances of a case, at any rows; None where it has none."""
    if not case.positions:
        return None
    random = np.random.default_rng([case.seed, 3])
    count, reach = random.integers(1, 40, 2)
    embeddings = random.standard_normal((count, case.hidden)).astype(np.float32)
    return Relative(embeddings, random.integers(0, count, 2 * reach + 1))


def make_hidden(case: EncoderCase) -> tuple[Any, Any]:
    """Hidden states and mask of a case."""
    random = np.random.default_rng([case.seed, 1])
    hidden = random.standard_normal((case.batch, case.length, case.hidden)).astype(np.float32)
    if case.mask == 0:
        return hidden, None
    kept = random.integers(0, case.length + 1, (case.batch, 1)) if case.length else np.zeros((case.batch, 1))
    mask = np.arange(case.length) < kept
    if case.mask > 1:
        mask = random.random((case.batch, case.length)) < 0.6
    if case.mask == 3 and case.batch:
        mask[random.integers(case.batch)] = False
    return hidden, mask.astype(random.choice([np.bool_, np.int64, np.float32]))


def check_linear(case: LinearCase, level: str, dtype: str) -> None:
    """A case's outputs against exact ones."""
    random = np.random.default_rng(case.seed)
    linear = make_linear(
        random,
        case.rows,
        case.columns,
        bias=case.bias,
        density=case.density,
        full=case.full,
        skewed=case.skewed,
        scales=case.scales,
        block=case.block,
    )
    x = random.standard_normal((case.tokens, case.columns)) * 2.0 ** random.integers(-9, 9, (case.tokens, 1))
    x = (x + random.standard_normal()).astype(np.float32)
    y = SparseLinear(linear, dtype=dtype, threads=case.threads, level=level)(x)
    assert y.shape == (case.tokens, case.rows)
    assert y.dtype == np.float32
    assert_close(y, linear, x, dtype, level)


def check_encoder(case: EncoderCase, level: str, dtype: str) -> None:
    """A case's outputs against exact ones, and once more."""
    layers, bias, relative = make_layers(case), make_bias(case), make_relative(case)
    encoder = Encoder(
        layers,
        head_dim=case.head_dim,
        activation=case.activation,
        bias=bias,
        pre_norm=bool(case.modern & 1),
        relative=relative,
        dtype=dtype,
        threads=case.threads,
        level=level,
    )
    hidden, mask = make_hidden(case)
    before = hidden.copy()
    y = encoder(hidden, mask)
    assert y.shape == hidden.shape
    assert y.dtype == np.float32
    assert (hidden == before).all()
    assert encoder(hidden, mask).tobytes() == y.tobytes()
    if y.size:
        how = case.head_dim, case.activation, 1e-12, bias, bool(case.modern & 1), relative
        expected = reference_encoder(layers, hidden, mask, *how)
        assert_near(*(compared(values, mask, case.window) for values in (y, expected)), dtype)
    if mask is not None:
        assert (y[:, 1:][np.asarray(mask)[:, 1:] == 0] == 0).all()


def compared(values: Any, mask: Any, window: int | None) -> Any:
    """The texts with a token, without first places that are hidden and see none.

    Where nothing is seen no attention adds up to 1, as is assumed where the bias of a value whose weights are
    all zero is added in advance.
    """
    if mask is None:
        return values
    kept = np.asarray(mask) != 0
    near = kept if window is None else kept[:, : window + 1]
    result = np.where(near.any(axis=1)[:, None, None] | (np.arange(kept.shape[1]) > 0)[:, None], values, 0)
    return result[kept.any(axis=1)]


def assert_near(y: Any, expected: Any, dtype: str) -> None:
    """Whether an encoder's output is as exact as its type allows; for float32, every single number.

    There 3e-6 is 50 roundings of 2^-24; two layers have some 20 steps that round, one after another.
    """
    if not y.size:
        return
    error = y - expected
    if dtype == "float32":
        assert np.abs(error).max() <= 3e-6 * max(1.0, np.abs(expected).max())
    share = np.sqrt((error**2).mean() / max((expected**2).mean(), 1e-30))
    assert share <= RMS[dtype], f"{share:.3g}"


def floats(values):
    return np.array(values, np.float32)


def linear(weight, bias=None):
    return Linear(Matrix.from_dense(floats(weight)), None if bias is None else floats(bias))


def zeros(rows, columns):
    return linear(np.zeros((rows, columns)))


def plain(hidden):
    return Norm(np.ones(hidden, np.float32), np.zeros(hidden, np.float32))


def layer(hidden=4, inner=1, **parts):
    """A layer whose parts do nothing but those that are given."""
    return Layer(
        **{
            "query": zeros(inner, hidden),
            "key": zeros(inner, hidden),
            "value": zeros(inner, hidden),
            "attention_output": zeros(hidden, inner),
            "attention_norm": plain(hidden),
            "ffn_in": zeros(2, hidden),
            "ffn_out": zeros(hidden, 2),
            "output_norm": plain(hidden),
        }
        | parts
    )
