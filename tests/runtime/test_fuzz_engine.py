"""Broken and forged matrices for the engine, in Python and straight to its C interface; and odd sizes.

FUZZ_ENGINE_CASES is the number of cases (600 unless told), FUZZ_ENGINE_FIRST the first one's number (0):
case i is the same in every run. `make sanitize` runs many, in libraries compiled with sanitizers.

A case is refused with `EngineError` or `CodecError`, or it gives an array of the right shape; one that is
only of odd sizes gives what is right. The C interface is given what its contract allows: any
numbers, and arrays that are as long as the numbers say, where those are allowed.
"""

import ctypes
import os
import random
import struct
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from fuzz.weights import forged_blob, mangled
from runtime.engines import (
    PAIRS,
    check_encoder,
    check_linear,
    encoder_case,
    linear_case,
)
from runtime.odd import (
    FLOATS,
    MOST_COLUMNS,
    MOST_ROWS,
    SIGNED,
    TYPES,
    odd_input,
    odd_layer,
    odd_linear,
    odd_matrix,
    ones,
    placed,
    seeded,
    some_layer,
    some_matrix,
)

from fineprune_runtime import Encoder, EngineError, Layer, Linear, Matrix, SparseLinear, codec, native
from fineprune_runtime.layers import Relative

CASES = int(os.environ.get("FUZZ_ENGINE_CASES") or 600)
FIRST = int(os.environ.get("FUZZ_ENGINE_FIRST") or 0)

pytestmark = pytest.mark.skipif(not PAIRS, reason="the engine's libraries were not built")


def run_linear(chance: random.Random, given: Linear, level: str, dtype: str) -> str:
    engine = SparseLinear(given, dtype=dtype, threads=chance.randint(1, 3), level=level)
    rows, columns = given.weight.shape
    tokens = chance.choice((0, 1, 3)) if max(rows, columns) > 1000 else chance.choice((0, 1, 2, 15, 33, 100))
    y = engine(odd_input(chance, tokens, columns))
    assert y.shape == (tokens, rows)
    assert engine.nbytes >= 0
    return "ran"


# -- the kinds of cases ------------------------------------------------------------------------------


def right_linear(chance: random.Random, level: str, dtype: str) -> str:
    sizes = chance.choice(((50, 90, 140), (20, 1700, 20), (3, 5, 9)))
    check_linear(linear_case(chance.randint, *sizes), level, dtype)
    return "right"


def right_encoder(chance: random.Random, level: str, dtype: str) -> str:
    check_encoder(encoder_case(chance.randint), level, dtype)
    return "right"


def blob(chance: random.Random, level: str, dtype: str) -> str:
    """A blob that was damaged, or forged under a checksum that is right."""
    shape = chance.randint(1, 30), chance.randint(1, 40)
    made = codec.encode(some_matrix(chance, *shape).to_dense(), chance.choice(TYPES)).tobytes()
    if chance.random() < 0.2:
        made = mangled(chance, made)
    for _ in range(chance.choice((0, 1, 1, 2))):
        made = forged_blob(chance, made, shape)
    if len(made) >= 12 and chance.random() < 0.9:
        made = made[:8] + struct.pack("<I", zlib.crc32(made[:8] + made[12:])) + made[12:]
    matrix = Matrix.from_blob(np.frombuffer(made, np.uint8), shape)
    return run_linear(chance, Linear(matrix, None), level, dtype)


def linear(chance: random.Random, level: str, dtype: str) -> str:
    rows, columns = chance.randint(0, 40), chance.choice((0, 1, 30, 900))
    given = Linear(some_matrix(chance, rows, columns), chance.choice((None, ones(rows))))
    for _ in range(chance.choice((1, 1, 2))):
        given = odd_linear(chance, given)
    return run_linear(chance, given, level, dtype)


def encoder(chance: random.Random, level: str, dtype: str) -> str:
    hidden, head_dim = chance.choice((1, 2, 16, 33)), chance.choice((1, 7, 16))
    layers = [some_layer(chance, hidden, head_dim) for _ in range(chance.randint(1, 3))]
    if chance.random() < 0.45:
        index = chance.randrange(len(layers))
        layers[index] = odd_layer(chance, layers[index])
    given = {
        "head_dim": chance.choice((*[head_dim] * 20, 0, -1, 3, 2**40)),
        "activation": chance.choice(("gelu", "gelu_tanh", "relu")),
        "epsilon": chance.choice((1e-12, 1e-12, 0.0, 1e-45, 1e30)),
        "threads": chance.choice((*(1, 2, 3) * 9, 0, -1, 1025)),
        "bias": odd_input(chance, chance.choice((4, 4, 0)), chance.choice((3, 41, 1, 2))),
        "pre_norm": chance.random() < 0.3,
        "relative": None,
    }
    if chance.random() < 0.5:
        count, reach = chance.randrange(3), chance.randrange(9)
        rows = seeded(chance).integers(-(chance.random() < 0.1), count + 1, 2 * reach + 1)
        given["relative"] = Relative(odd_input(chance, count, hidden), rows)
    if chance.random() < 0.5:
        given["bias"] = None
    engine = Encoder(layers, dtype=dtype, level=level, **given)
    shape = chance.choice((0, 1, 3, 5)), chance.choice((0, 1, 2, 31, 70, 130))
    mask = chance.choice((None, seeded(chance).integers(0, 2, shape), np.zeros(shape)))
    assert engine(odd_input(chance, *shape, engine.hidden), mask).shape == (*shape, engine.hidden)
    return "ran"


class Raw:
    """Structures of the C interface with fields that were changed; keeps the arrays behind them alive."""

    def __init__(self, chance: random.Random, odd: float = 0.5) -> None:
        self.chance, self.odd, self.held = chance, odd, list[Any]()

    def number(self, value: int, choices: tuple[int, ...] = SIGNED) -> int:
        return self.chance.choice(choices) if self.chance.random() < self.odd else value

    def array(self, array: Any, dtype: Any) -> int:
        # Of its own length exactly, so that reading beyond it is seen.
        self.held.append(np.array(array, dtype, order="C"))
        return int(self.held[-1].ctypes.data)

    def matrix(self, given: Linear) -> native.CMatrix:
        chance, (rows, columns), kept = self.chance, given.weight.shape, len(given.weight.values)
        field = chance.randrange(3)
        if field == 0:
            rows = self.number(rows)
        elif field == 1:
            columns = self.number(columns)
        else:
            kept = self.number(kept, (*SIGNED, kept + 1, kept - 1, rows * columns, rows * columns + 1))
        positions, values = given.weight.positions, given.weight.values
        if 0 <= rows <= MOST_ROWS and 0 <= columns <= MOST_COLUMNS and 0 <= kept <= rows * columns:
            kept = min(kept, 2**20)
            values, bias = np.resize(values, kept), np.resize(seeded(chance).standard_normal(9), rows)
            positions = None if positions is None else np.resize(positions, kept)
            scales = np.resize(np.ones(1) if given.weight.scales is None else given.weight.scales, rows)
        else:  # refused by these numbers alone
            bias = scales = np.zeros(0)
        return native.CMatrix(
            rows,
            columns,
            kept,
            None if positions is None else self.array(positions, np.int64),
            None if chance.random() < 0.05 else self.array(values, np.float32),
            None if chance.random() < 0.3 else self.array(bias, np.float32),
            None if chance.random() < 0.5 else self.array(scales, np.float32),
        )

    def layer(self, given: Layer, hidden: int, head_dim: int) -> native.CLayer:
        rows = sum(part.weight.shape[0] for part in given[:3])
        qkv = Linear(some_matrix(self.chance, rows, given.query.weight.shape[1]), None)
        parts = qkv, given.attention_output, given.ffn_in, given.ffn_out
        norms = [seeded(self.chance).standard_normal(hidden) for _ in range(4)]
        if self.chance.random() < 0.1:
            norms[3] = placed(self.chance, norms[3], self.chance.choice(FLOATS))
        matrices = [self.matrix(part) for part in parts]
        heads = max(0, min(matrices[1].columns, MOST_COLUMNS)) // max(head_dim, 1)
        rows_of_bias = np.full(heads, self.number(0, (1, 3, *SIGNED)))
        return native.CLayer(
            *matrices,
            *(self.array(norm, np.float32) for norm in norms),
            None if self.chance.random() < 0.7 else self.array(rows_of_bias, np.int64),
            None if self.chance.random() < 0.7 else self.address(self.matrix(given.ffn_in)),
            None if self.chance.random() < 0.7 else self.array(odd_input(self.chance, head_dim), np.float32),
            self.number(-1, (0, 5, 2**30, 2**30 + 1, *SIGNED)),
            *(
                None
                if self.chance.random() < 0.7
                else self.array(odd_input(self.chance, 7 * size), np.float32)
                for size in [heads * max(head_dim, 1)] * 2
            ),
        )

    def address(self, matrix: native.CMatrix) -> int:
        self.held.append(matrix)
        return ctypes.addressof(matrix)

    def distances(self, encoder: ctypes.c_void_p, library: Any) -> None:
        reach = self.number(3)  # there are always 7 rows, for which `layer` has values
        fits = 0 < reach <= MOST_COLUMNS
        rows = (
            seeded(self.chance).integers(0, 7 + (self.chance.random() < 0.1), 2 * reach + 1) if fits else []
        )
        address = self.array(rows, np.int64)
        native.call(library, "fp_encoder_set_distances", encoder, 7, reach, address)

    def bias(self, encoder: ctypes.c_void_p, library: Any) -> None:
        rows, reach = self.number(2), self.number(3)
        fits = 0 < rows <= MOST_COLUMNS and 0 < reach <= MOST_COLUMNS and rows * reach < 2**20
        values = odd_input(self.chance, rows, 2 * reach + 1) if fits else None
        address = None if values is None else self.array(values, np.float32)
        native.call(library, "fp_encoder_set_bias", encoder, rows, reach, address)


def pointer(array: Any, of: Any = ctypes.c_float) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(of))


def raw_linear(chance: random.Random, level: str, dtype: str) -> str:
    library, raw, handle = native.library(level), Raw(chance, 0.5), ctypes.c_void_p()
    given = Linear(some_matrix(chance, chance.randint(0, 40), chance.choice((0, 1, 30, 900))), None)
    if chance.random() < 0.3:
        odd = odd_matrix(chance, given.weight)
        same = odd.positions is None or odd.positions.shape == odd.values.shape
        given = Linear(odd, None) if same and odd.shape == given.weight.shape else given
    matrix, threads = raw.matrix(given), chance.choice((*(1, 2, 3) * 9, 0, -1, 1025, -(2**31)))
    number = chance.choice((*[native.DTYPES.index(dtype)] * 20, -1, 3))
    native.call(library, "fp_linear_new", ctypes.byref(matrix), number, threads, ctypes.byref(handle))
    try:
        tokens = chance.choice((-1, 0, 1, 2) if matrix.rows > 1000 else (-(2**62), -1, 0, 1, 2, 65))
        x = odd_input(chance, max(0, tokens), matrix.columns)
        out = np.full((max(0, tokens), matrix.rows), 7.5, np.float32)
        native.call(library, "fp_linear_run", handle, pointer(x), tokens, pointer(out))
        assert library.fp_linear_bytes(handle) >= 0
    finally:
        library.fp_linear_free(handle)
    return "ran"


def raw_encoder(chance: random.Random, level: str, dtype: str) -> str:
    library, raw, handle = native.library(level), Raw(chance, 0.1), ctypes.c_void_p()
    hidden, head_dim = chance.choice((1, 2, 16, 33)), chance.choice((1, 7, 16))
    settings = native.CSettings(
        raw.number(hidden),
        raw.number(head_dim),
        chance.choice((1e-12, *FLOATS)),
        raw.number(1, (0, 1, 2, 3, -1)),
        raw.number(native.DTYPES.index(dtype), (-1, 0, 2, 3)),
        raw.number(2, (1, 2, 3, 0, -1, 1025)),
        raw.number(0, (0, 1, -1, 7)),
    )
    native.call(library, "fp_encoder_new", ctypes.byref(settings), ctypes.byref(handle))
    outcome = "ran"
    try:
        for prepare in (raw.bias, raw.distances):
            try:
                if chance.random() < 0.4:
                    prepare(handle, library)
            except EngineError:
                outcome = "refused"
        for _ in range(chance.randint(0, 2)):
            layer = raw.layer(some_layer(chance, hidden, head_dim), settings.hidden, settings.head_dim)
            try:
                native.call(library, "fp_encoder_add", handle, ctypes.byref(layer))
            except EngineError:  # and then it runs without that layer
                outcome = "refused"
        batch, length = (
            chance.choice((-(2**62), -1, 0, 1, 3)),
            chance.choice((-(2**62), -1, 0, 1, 5, 40, 113)),
        )
        if settings.hidden > 1000:
            batch, length = min(batch, 1), min(length, 5)
        shape = max(0, batch), max(0, length), settings.hidden
        x = odd_input(chance, *shape)
        # The result may be written over the input.
        out = x if chance.random() < 0.2 else np.full(shape, 7.5, np.float32)
        mask = None if chance.random() < 0.3 else seeded(chance).integers(0, 2, shape[:2], np.uint8)
        flags = None if mask is None else pointer(mask, ctypes.c_uint8)
        native.call(library, "fp_encoder_run", handle, pointer(x), flags, batch, length, pointer(out))
        # A hidden first token is computed all the same, as torch does; other hidden tokens are 0.
        assert mask is None or not out[:, 1:][mask[:, 1:] == 0].any()
        assert library.fp_encoder_bytes(handle) >= 0
    finally:
        library.fp_encoder_free(handle)
    return outcome


KINDS = (right_linear, right_encoder, blob, linear, encoder, raw_linear, raw_encoder)


def run(first: int, count: int) -> Counter[tuple[str, str]]:
    """Outcomes of cases, by kind; raises with its number for the first that ends in another way."""
    outcomes = Counter[tuple[str, str]]()
    for index in range(first, first + count):
        chance = random.Random(f"engine {index}")
        kind, (level, dtype) = KINDS[index % len(KINDS)], PAIRS[index // len(KINDS) % len(PAIRS)]
        try:
            outcome = kind(chance, level, dtype)
        except (EngineError, codec.CodecError):
            outcome = "refused"
        except Exception as error:
            raise AssertionError(f"case {index}: {kind.__name__} on {level} in {dtype}") from error
        outcomes[kind.__name__, outcome] += 1
    return outcomes


@pytest.mark.timeout(1200)
def test_what_is_wrong_is_refused_and_the_rest_runs():
    with np.errstate(all="ignore"):  # numpy's own, of the reference and where scales overflow
        outcomes = run(FIRST, CASES)
    if CASES >= 600:  # both ends are reached, and sizes that are only odd are never refused
        for kind in (blob, linear, encoder, raw_linear, raw_encoder):
            assert outcomes[kind.__name__, "ran"] >= 5, outcomes
            assert outcomes[kind.__name__, "refused"] >= 5, outcomes
        assert outcomes["right_linear", "refused"] == outcomes["right_encoder", "refused"] == 0


def test_a_case_is_the_same_in_every_run():
    whole = run(0, 60)
    whole.subtract(run(0, 25))
    assert +whole == run(25, 35)
