"""Matrices, layers and inputs for the engine's fuzz test: usual ones, and ones with something wrong."""

import math
import random
from typing import Any

import numpy as np
from runtime.engines import make_layer, make_matrix

from fineprune_runtime import Layer, Linear, Matrix

MOST_ROWS, MOST_COLUMNS = 2**20, 2**16
NUMBERS = (0, 1, 2, 3, 7, 16, 17, 33, 100, 4097, 2**16, 2**16 + 1, 2**20 + 1, 2**31, 2**40, 2**63 - 1)
SIGNED = (*NUMBERS, -1, -2, -16, -(2**31), -(2**63))
FLOATS = (math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45, 1e-38, -0.0, 0.0, -1.0, 127.5)
TYPES = ("float32", "float16", "bfloat16", "int8", "int4")


def seeded(chance: random.Random) -> np.random.Generator:
    return np.random.default_rng(chance.randrange(2**32))


def some_matrix(chance: random.Random, rows: int, columns: int) -> Matrix:
    density, full = chance.choice((0, 0.05, 0.3, 0.7, 1)), chance.choice((0, 0, 9))
    how = {"skewed": chance.random() < 0.5, "scales": chance.random() < 0.3}
    return make_matrix(seeded(chance), rows, columns, density, full, **how)


def ones(count: int) -> Any:
    """As many as are asked for; none for a number that was changed to something absurd."""
    return np.ones(count if 0 <= count <= MOST_ROWS else 0, np.float32)


def placed(chance: random.Random, array: Any, value: Any) -> Any:
    """A copy with `value` somewhere in it."""
    array = array.copy()
    if len(array):
        array[chance.randrange(len(array))] = value
    return array


def odd_length(chance: random.Random, array: Any) -> Any:
    """Cut off, longer, or of two dimensions."""
    wanted = chance.choice((0, 1, max(0, len(array) - 1), len(array) + 1, 2 * len(array)))
    return array[None] if chance.random() < 0.1 else np.resize(array, wanted)


def odd_positions(chance: random.Random, given: Matrix) -> Any:
    if given.positions is None:
        return np.arange(len(given.values) + chance.choice((-1, 0, 1)))
    action, end = chance.randrange(6), min(max(0, given.shape[0] * given.shape[1]), 2**40)
    if action == 0:
        return None
    if action == 1:
        return seeded(chance).permutation(given.positions)
    if action == 2:
        odd = chance.choice((-1, -(2**63), end, end + 1, 2**62, 2**63 - 1))
        return np.sort(placed(chance, given.positions, odd))
    if action == 3:
        return placed(chance, given.positions, chance.choice((0, end - 1, end, -end, -1, 2**62)))
    if action == 4:
        return odd_length(chance, given.positions)
    return seeded(chance).integers(-2, end + 3, len(given.positions))


def odd_matrix(chance: random.Random, given: Matrix) -> Matrix:
    """With one thing that is wrong, or only unusual."""
    action = chance.randrange(5)
    if action == 0:
        return given._replace(positions=odd_positions(chance, given))
    if action == 1:
        return given._replace(values=placed(chance, given.values, chance.choice(FLOATS)))
    if action == 2:
        return given._replace(values=odd_length(chance, given.values))
    if action == 3:
        scales = ones(given.shape[0]) if given.scales is None else given.scales
        odd = placed(chance, scales, chance.choice(FLOATS))
        odd = chance.choice((None, odd, odd, scales * np.float32(1e-30), odd_length(chance, scales)))
        return given._replace(scales=odd)
    shape = list(given.shape)
    shape[chance.randrange(2)] = chance.choice(SIGNED)
    return given._replace(shape=chance.choice((tuple(shape), tuple(shape), given.shape[::-1])))


def odd_linear(chance: random.Random, given: Linear) -> Linear:
    bias = ones(given.weight.shape[0]) if given.bias is None else given.bias
    action = chance.randrange(8)
    if action == 0:
        return given._replace(bias=placed(chance, bias, chance.choice(FLOATS)))
    if action == 1:
        return given._replace(bias=odd_length(chance, bias))
    return given._replace(weight=odd_matrix(chance, given.weight))


def some_layer(chance: random.Random, hidden: int, head_dim: int) -> Layer:
    heads, ffn = chance.randrange(4), chance.choice((0, 1, 17, 40))
    density, dead = chance.choice((0, 0.1, 0.5, 1)), chance.randrange(4)
    return make_layer(seeded(chance), hidden, heads, head_dim, ffn, dead, density=density)


def odd_layer(chance: random.Random, given: Layer) -> Layer:
    name = chance.choice(given._fields)
    part = getattr(given, name)
    if name == "bias_rows":
        count, row = chance.randrange(5), chance.choice((-(2**40), -1, 0, 3, 4, 2**40))
        return given._replace(bias_rows=np.full(count, row))
    if name == "window":
        return given._replace(window=chance.choice((None, 0, 1, 40, -1, 2**30, 2**40)))
    if name == "rotary":
        return given._replace(rotary=odd_input(chance, chance.choice((0, 3, 8))))
    if name.startswith("position"):
        return given._replace(**{name: odd_linear(chance, given.key) if chance.random() < 0.5 else given.key})
    if name == "ffn_gate":
        other = chance.choice((given.ffn_in, given.ffn_in, given.ffn_out))
        return given._replace(ffn_gate=odd_linear(chance, other) if chance.random() < 0.5 else other)
    if isinstance(part, Linear):
        other = chance.choice([each for each in given if isinstance(each, Linear)])
        return given._replace(**{name: other if chance.random() < 0.15 else odd_linear(chance, part)})
    field = chance.choice(part._fields)
    array = getattr(part, field)
    odd = odd_length(chance, array) if chance.random() < 0.4 else placed(chance, array, chance.choice(FLOATS))
    return given._replace(**{name: part._replace(**{field: odd})})


def odd_input(chance: random.Random, *shape: int) -> Any:
    """Normal numbers, with now and then one that is not."""
    x = seeded(chance).standard_normal(shape).astype(np.float32)
    if x.size and chance.random() < 0.4:
        x.reshape(-1)[chance.randrange(x.size)] = chance.choice(FLOATS)
    return x
