import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.errors import FinepruneError
from fineprune.pruning import selection
from fineprune.pruning.selection import (
    Threshold,
    fill_masks,
    find_threshold,
    is_mixed,
    keep_count,
    top_v,
    top_v_by_cost,
)

INF = math.inf
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, INF, -INF, 0.1, -0.1, 1e-30, 300.0])
SPREAD = st.floats(-100, 100, width=16)
TENSORS = st.lists(st.lists(TIED | SPREAD, min_size=1, max_size=60), min_size=1, max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])


def select(scores, density, **options):
    masks = [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    threshold = top_v(scores, density, masks, **options)
    return masks, threshold


def by_stable_sort(values, keep):
    """The oracle: Python's stable sort keeps equal scores (0.0 and -0.0 too) in order of index."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    kept = set(order[:keep])
    return [index in kept for index in range(len(values))]


def assert_as_sorted(scores, density, key=None):
    masks, threshold = select(scores, density, key=key)
    ranked = scores if key is None else [key(score) for score in scores]
    values = [value for score in ranked for value in score.flatten().tolist()]
    keep = max(1, round(density * len(values)))
    expected = by_stable_sort(values, keep)
    assert sum(expected) == keep
    assert [flag for mask in masks for flag in mask.flatten().tolist()] == expected
    assert threshold.value == sorted(values)[-keep]
    assert threshold.equal == values.count(threshold.value)
    assert threshold.ties == keep - sum(value > threshold.value for value in values)


def small_pieces(patch, chunk=16, margin=3.0):
    """Let the sampled search work on tensors of a few dozen scores."""
    patch.setattr(selection, "_DIRECT", 4)
    patch.setattr(selection, "_SAMPLE", 1024)  # a stride of 17
    patch.setattr(selection, "_CHUNK", chunk)
    patch.setattr(selection, "_MARGIN", margin)


@settings(deadline=None, max_examples=50)
@given(TENSORS, DTYPES, st.floats(0.001, 1))
def test_ranked_directly(lists, dtype, density):
    assert_as_sorted([torch.tensor(values, dtype=dtype) for values in lists], density)


@settings(deadline=None, max_examples=50)
@given(TENSORS, DTYPES, st.floats(0.001, 1), st.sampled_from([5, 8, 21, 64]), st.sampled_from([0.01, 3.0]))
def test_ranked_from_a_sample(lists, dtype, density, chunk, margin):
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch, chunk, margin)
        assert_as_sorted([torch.tensor(values, dtype=dtype) for values in lists], density)


@settings(deadline=None, max_examples=50)
@given(TENSORS, DTYPES, st.floats(0.001, 1), st.booleans())
def test_ranked_by_size(lists, dtype, density, sampled):
    with pytest.MonkeyPatch.context() as patch:
        if sampled:
            small_pieces(patch)
        assert_as_sorted([torch.tensor(values, dtype=dtype) for values in lists], density, torch.abs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("density", [0.001, 0.03, 0.1, 0.5, 0.97, 1.0])
def test_real_sizes_go_through_the_sample(dtype, density):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(shape, generator=generator).to(dtype) for shape in [(64, 128), (100, 99), (3, 7)]]
    assert sum(score.numel() for score in scores) > selection._DIRECT
    assert_as_sorted(scores, density)


def test_the_large_path_is_the_one_tested(monkeypatch):
    monkeypatch.setattr(selection, "_DIRECT", 4)
    calls = []
    scan = selection._scan
    monkeypatch.setattr(selection, "_scan", lambda *given: calls.append(given[1:3]) or scan(*given))
    find_threshold([torch.arange(100.0)], 10)
    assert calls


@pytest.mark.parametrize("side", ["above", "below"])
def test_a_bracket_that_missed_is_widened(monkeypatch, side):
    # The stride is 17: the sample sees only the planted scores, all on one side of the answer.
    small_pieces(monkeypatch, margin=0.01)
    scores = torch.arange(340.0)
    scores[::17] += 1000 if side == "above" else -1000
    calls = []
    scan = selection._scan
    monkeypatch.setattr(selection, "_scan", lambda *given: calls.append(given[1:3]) or scan(*given))
    for keep in (1, 10, 25, 100, 170, 315, 330, 340):
        calls.clear()
        found = find_threshold([scores], keep)
        assert found.value == scores.sort(descending=True).values[keep - 1].item()
        if keep in (100, 170):
            assert len(calls) > 1


@pytest.mark.parametrize("planted", [INF, -INF])
@pytest.mark.parametrize("keep", [1, 10, 100, 170, 320, 330, 340])
def test_a_sample_of_nothing_but_infinities_misleads_nobody(monkeypatch, planted, keep):
    small_pieces(monkeypatch)
    scores = torch.arange(340.0)
    scores[::17] = planted  # what stride 17 samples
    found = find_threshold([scores], keep)
    assert found.value == scores.sort(descending=True).values[keep - 1].item()


@pytest.mark.parametrize("value", [0.0, -3.5, INF, -INF])
@pytest.mark.parametrize("sampled", [False, True])
def test_constant_scores_keep_the_first(monkeypatch, value, sampled):
    if sampled:
        small_pieces(monkeypatch)
    masks, threshold = select([torch.full((6, 10), value), torch.full((40,), value)], 0.62)
    # 62 of 100: the whole first tensor (60) and two of the second
    assert masks[0].all()
    assert masks[1].tolist() == [True, True] + [False] * 38
    assert threshold == (value, 62, 100)


def test_the_lower_index_and_the_earlier_tensor_win():
    # 4 of 8: the 9, and of the five 2s the first three; row-major order inside a matrix.
    first = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
    second = torch.tensor([[2.0, 2.0], [9.0, 2.0]])
    masks, threshold = select([first, second], 0.5)
    assert masks[0].tolist() == [[False, True], [True, False]]
    assert masks[1].tolist() == [[True, False], [True, False]]
    assert threshold == Threshold(value=2.0, ties=3, equal=5)
    masks, _ = select([second, first], 0.5)
    assert masks[0].tolist() == [[True, True], [True, True]]
    assert not masks[1].any()


def test_without_contiguity_the_logical_order_counts():
    scores = torch.tensor([[5.0, 1.0], [1.0, 1.0]]).t()  # its memory runs down the columns
    masks = [torch.zeros(2, 2, dtype=torch.bool)]
    top_v([scores], 0.5, masks)
    assert masks[0].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("density", "total", "keep"),
    [
        (0.1, 85, 8),  # 8.5 rounds to even
        (0.5, 5, 2),  # 2.5
        (0.5, 7, 4),  # 3.5
        (0.03, 1000, 30),
        (0.001, 100, 1),  # at least 1
        (1.0, 9, 9),
        (0.999, 9, 9),
    ],
)
def test_keep_count(density, total, keep):
    assert keep_count(density, total) == keep
    masks, _ = select([torch.linspace(-1, 1, total)], density)
    assert int(masks[0].sum()) == keep


def test_what_stood_in_the_masks_does_not_matter():
    masks = [torch.ones(3, dtype=torch.bool)]
    top_v([torch.tensor([1.0, 3.0, 2.0])], 1 / 3, masks)
    assert masks[0].tolist() == [False, True, False]


def test_scores_that_need_a_gradient_are_only_read():
    scores = torch.tensor([1.0, -3.0, 2.0], requires_grad=True)
    masks, threshold = select([scores], 2 / 3, key=torch.abs)
    assert masks[0].tolist() == [False, True, True]
    assert threshold.value == 2.0
    assert scores.tolist() == [1.0, -3.0, 2.0]


def test_the_floor_keeps_its_share_of_each_matrix():
    # 6 of 20 by rank alone: 14..19, all of the second. A floor of 0.2 leaves the first its best
    # two (8 and 9) and takes two from the others: 16..19 stay.
    first, second = torch.arange(10.0), torch.arange(10.0, 20.0)
    masks, threshold = select([first, second], 0.3)
    assert (int(masks[0].sum()), int(masks[1].sum())) == (0, 6)
    masks, threshold = select([first, second], 0.3, floor=0.2)
    assert masks[0].nonzero().flatten().tolist() == [8, 9]
    assert masks[1].nonzero().flatten().tolist() == [6, 7, 8, 9]
    assert threshold.value == 16.0


def test_a_floor_above_the_density_is_the_density():
    masks, _ = select([torch.arange(10.0), torch.arange(10.0, 20.0)], 0.3, floor=0.9)
    assert [int(mask.sum()) for mask in masks] == [3, 3]


def test_a_floor_that_is_met_changes_nothing():
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(50, generator=generator) for _ in range(3)]
    assert all(
        torch.equal(with_, without)
        for with_, without in zip(select(scores, 0.4, floor=0.01)[0], select(scores, 0.4)[0], strict=True)
    )


@settings(deadline=None, max_examples=50)
@given(TENSORS, st.floats(0.001, 1), st.floats(0, 1))
def test_with_a_floor_the_count_stays_exact(lists, density, floor):
    scores = [torch.tensor(values) for values in lists]
    masks, _ = select(scores, density, floor=floor)
    assert sum(int(mask.sum()) for mask in masks) == keep_count(density, sum(map(len, lists)))
    for mask, values in zip(masks, lists, strict=True):
        assert int(mask.sum()) >= int(min(floor, density) * len(values))
        kept = [value for value, flag in zip(values, mask.tolist(), strict=True) if flag]
        lost = [value for value, flag in zip(values, mask.tolist(), strict=True) if not flag]
        assert not kept or not lost or min(kept) >= max(lost)  # in a matrix the best stay


@pytest.mark.parametrize("sampled", [False, True])
def test_nan_is_an_error_that_counts_them(monkeypatch, sampled):
    if sampled:
        small_pieces(monkeypatch)
    scores = torch.arange(100.0)
    scores[:34] = math.nan
    with pytest.raises(FinepruneError, match="34 importance scores are NaN: the training diverged"):
        select([scores, torch.zeros(3)], 0.5)


def test_one_nan_is_an_error_too():
    with pytest.raises(FinepruneError, match="1 importance scores are NaN"):
        select([torch.tensor([1.0, math.nan, 2.0])], 1 / 3)


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_keep_out_of_range(keep):
    with pytest.raises(FinepruneError, match=f"keep={keep}: must be between 1 and .* 4"):
        find_threshold([torch.zeros(4)], keep)


def test_fill_masks_across_pieces(monkeypatch):
    monkeypatch.setattr(selection, "_CHUNK", 3)
    masks = [torch.zeros(4, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)]
    scores = [torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0])]
    fill_masks(masks, scores, Threshold(1.0, ties=4, equal=7))
    assert masks[0].tolist() == [True, True, False, True]
    assert masks[1].tolist() == [True, True, False, False, False]


# ---- by cost -------------------------------------------------------------------------------------------


HEADS, NEURONS = [0.9, 0.2], [0.8, 0.5, 0.4, 0.1]  # a head costs 4, a neuron 1: 12 in all


@pytest.mark.parametrize(
    ("density", "heads", "neurons"),
    [
        (0.5, [1, 0], [1, 1, 0, 0]),  # 6: one head and two neurons
        (0.25, [1, 0], [0, 0, 0, 0]),  # 3, of which a head may take 4 since at least half of it is left
        (0.15, [1, 0], [0, 0, 0, 0]),  # 1.8: nothing fits, and one unit stays
        (0.75, [1, 1], [1, 1, 1, 0]),  # 9: 7 taken, and 2 left for the head that costs 4
    ],
)
def test_by_cost_keeps_a_unit_while_half_of_it_is_left(density, heads, neurons):
    scores = [torch.tensor(HEADS), torch.tensor(NEURONS)]
    masks = [torch.zeros(2, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)]
    threshold = top_v_by_cost(scores, [4, 1], density, masks)
    assert [mask.int().tolist() for mask in masks] == [heads, neurons]
    kept = sorted((s for score, mask in zip(scores, masks, strict=True) for s in score[mask].tolist()))
    assert threshold.value == pytest.approx(kept[0])


def test_by_cost_of_the_first_unit_that_stays_and_of_the_others():
    # The better head, here the second, costs 3 and the other 1; the second neuron is free. 7 in all, 4 to
    # spend: a head (3), a neuron (1), and the free one; nothing is left for the third.
    scores = [torch.tensor([0.2, 0.9]), torch.tensor([0.5, 0.8, 0.1, 0.4])]
    masks = [torch.zeros(2, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)]
    threshold = top_v_by_cost(scores, [(3.0, 1.0), (1.0, 0.0, 1.0, 1.0)], 4 / 7, masks)
    assert [mask.int().tolist() for mask in masks] == [[0, 1], [1, 1, 0, 0]]
    assert threshold.value == 0.5
    assert is_mixed([(3.0, 1.0)])
    assert not is_mixed([4, 4])


def test_by_cost_the_earlier_of_equal_units_goes_first():
    masks = [torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)]
    threshold = top_v_by_cost([torch.ones(2), torch.ones(2)], [1, 2], 0.5, masks)
    assert [mask.tolist() for mask in masks] == [[True, True], [True, False]]  # 3 of 6, and 1 left for a 2
    assert threshold == (1.0, 3, 4)


def test_by_cost_refuses_what_it_cannot_sort():
    flat = torch.zeros(1).expand(2**20 + 1)
    with pytest.raises(FinepruneError, match="1,048,577 units of different cost in one ranking"):
        top_v_by_cost([flat], [1], 0.5, [flat > 0])
    with pytest.raises(FinepruneError, match="1 importance scores are NaN"):
        top_v_by_cost([torch.tensor([1.0, math.nan])], [1], 0.5, [torch.zeros(2, dtype=torch.bool)])
