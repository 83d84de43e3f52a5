"""A dense layer answers a few tokens by a kernel of its own, and to the bit as it answers many."""

import math

import numpy as np
import pytest
from runtime.engines import LEVELS

from fineprune_runtime import Linear, Matrix, SparseLinear

MANY = 40  # tokens, which fill a tile on every level


def dense_layer(rows, columns, level, seed=0):
    numbers = np.random.default_rng(seed)
    weight = numbers.normal(size=(rows, columns)).astype(np.float32)
    bias = numbers.normal(size=rows).astype(np.float32)
    tokens = numbers.normal(size=(MANY, columns)).astype(np.float32)
    return SparseLinear(Linear(Matrix.from_dense(weight), bias), level=level), tokens


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 384), (65, 7), (129, 64)])
def test_one_to_five_tokens_are_those_of_many(level, rows, columns):
    engine, tokens = dense_layer(rows, columns, level)
    expected = engine(tokens)
    for count in range(1, 6):
        for first in range(0, MANY - count, 7):
            some = slice(first, first + count)
            assert engine(tokens[some]).tolist() == expected[some].tolist()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_is_nan_alone(level, odd):
    engine, tokens = dense_layer(70, 9, level)
    expected = engine(tokens)
    tokens[1, 8] = odd
    found = engine(tokens[:3])
    assert np.isnan(found[1]).all()
    assert found[[0, 2]].tolist() == expected[[0, 2]].tolist()


def test_the_second_copy_of_the_weights_counts_and_large_layers_have_none():
    small, _ = dense_layer(64, 64, LEVELS[0])
    large, _ = dense_layer(1025, 1024, LEVELS[0])
    assert small.nbytes > 2 * 4 * 64 * 64
    assert large.nbytes < 2 * 4 * 1025 * 1024
