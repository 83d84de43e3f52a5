"""How scores start, by hand."""

import pytest
import torch

from fineprune import PruningConfig
from fineprune.pruning.score_rules import Learned


def start(size, zero=0.0, centered=False, **settings):
    config = PruningConfig("movement", density=0.1, **settings)
    return Learned(config, zero, centered).start(torch.tensor(size)).tolist()


def test_a_start_from_the_size_of_weights():
    assert start([1.0, 3.0, 2.0]) == [0.5, 1.5, 1.0]
    assert start([1.0, 3.0, 2.0], zero=2.0, centered=True) == [1.5, 2.5, 2.0]
    assert start([1.0, 3.0], zero=2.0, score_init="zero") == [2.0, 2.0]


@pytest.mark.parametrize("zeros", [1, 9])
def test_weights_that_are_pruned_already_change_no_score_of_the_others(zeros):
    assert start([1.0, 3.0] + zeros * [0.0]) == [0.5, 1.5] + zeros * [0.0]


def test_a_matrix_of_zeros():
    assert start([0.0, 0.0]) == [0.0, 0.0]
