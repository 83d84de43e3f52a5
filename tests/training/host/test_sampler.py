"""GroupedByLength: a permutation, in batches of similar length, from seed and epoch alone."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fineprune.training.host.sampler import GroupedByLength


def lengths_of(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [min(128, 1 + int(rng.expovariate(1 / 20))) for _ in range(count)]


def order(sampler: GroupedByLength, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def batches(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


@given(
    lengths=st.lists(st.integers(1, 9), max_size=400),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 100),
)
def test_each_index_once(lengths, batch, seed, epoch):
    sampler = GroupedByLength(lengths, batch, seed)
    indices = order(sampler, epoch)
    assert len(sampler) == len(lengths)
    assert sorted(indices) == list(range(len(lengths)))


@pytest.mark.parametrize("count", [1000, 1003, 7, 8])
def test_batches_are_runs_of_the_sorted_stretch(count):
    """All of it is one stretch of 50 batches or less per 400: each batch is narrow."""
    lengths = lengths_of(count)
    indices = order(GroupedByLength(lengths, 8, seed=1))
    for stretch in batches(indices, 8 * 50):
        spans = sorted(
            (min(lengths[index] for index in batch), max(lengths[index] for index in batch))
            for batch in batches(stretch, 8)
        )
        for (_, last), (first, _) in itertools.pairwise(spans):
            assert last <= first  # no two batches overlap


def test_padding_is_small():
    lengths = lengths_of(4000)

    def padded(indices: list[int]) -> int:
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches(indices, 32))

    shuffled = random.Random(0).sample(range(4000), 4000)
    assert padded(order(GroupedByLength(lengths, 32, seed=0))) < 1.15 * sum(lengths)
    assert padded(shuffled) > 2 * sum(lengths)


def test_the_short_batch_is_the_last():
    lengths = [1] * 3 + [5] * 8  # the short batch would be of the longest texts
    for epoch in range(20):
        indices = order(GroupedByLength(lengths, 4, seed=0), epoch)
        assert len(batches(indices, 4)[-1]) == 3
        assert sorted(indices) == list(range(11))


def test_the_order_of_batches_is_random():
    lengths = list(range(400))
    firsts = {lengths[order(GroupedByLength(lengths, 8, seed=2), epoch)[0]] // 8 for epoch in range(20)}
    assert len(firsts) > 10  # of 50 batches


def test_batches_have_other_members_in_each_epoch():
    lengths = lengths_of(2000)
    sampler = GroupedByLength(lengths, 8, seed=3)
    one, two = ({frozenset(batch) for batch in batches(order(sampler, epoch), 8)} for epoch in (0, 1))
    assert not one & two


def test_a_function_of_seed_and_epoch():
    lengths = lengths_of(500)
    sampler = GroupedByLength(lengths, 8, seed=4)
    expected = {epoch: order(sampler, epoch) for epoch in (0, 1, 2)}
    torch.manual_seed(77)
    again = GroupedByLength(lengths, 8, seed=4)
    assert {epoch: order(again, epoch) for epoch in (2, 0, 1)} == expected  # whatever came before
    assert list(again) == list(again) == expected[1]
    assert len({tuple(indices) for indices in expected.values()}) == 3
    assert order(GroupedByLength(lengths, 8, seed=5), 0) not in expected.values()


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    order(GroupedByLength(lengths_of(500), 8, seed=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_lengths_are_still_shuffled():
    indices = order(GroupedByLength([5] * 100, 4, seed=0))
    assert indices != sorted(indices)
    assert len({frozenset(batch) for batch in batches(indices, 4)} & {frozenset(range(4))}) == 0


def test_no_rows():
    assert order(GroupedByLength([], 8, seed=0)) == []
