"""Which hidden states are compared."""

import pytest
import torch

from fineprune import FinepruneError
from fineprune.training.distillation.layer_pairs import check_pairs, fixed_pairs, nearest_pairs, placed
from fineprune.training.distillation.losses import hidden_distance, paired_distance


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "pairs"),
    [
        ("same", 3, 3, [(1, 1), (2, 2), (3, 3)]),
        ("same", 3, 12, [(1, 4), (2, 8), (3, 12)]),
        ("same", 4, 6, [(1, 2), (2, 3), (3, 4), (4, 6)]),  # 1.5, 3, 4.5 and 6, halves to the even number
        ("even", 4, 4, [(0, 0), (2, 2), (4, 4)]),
        ("even", 3, 6, [(0, 0), (2, 4)]),
        (((1, 2), (0, 0)), 2, 4, [(1, 2), (0, 0)]),
    ],
)
def test_fixed_pairs(layers, student, teacher, pairs):
    assert fixed_pairs(layers, student, teacher) == pairs


def test_layers_are_placed_from_the_last_to_the_first():
    # structures.md 12.16: the last one takes 1 of 0, 1, 2; of those before it, 0 is left, 0.5 in all.
    distances = [[0.3, 0.1, 0.2], [0.4, 0.2, 0.3]]
    assert placed(range(3), range(2), lambda own, other: distances[other][own]) == [(0, 0), (1, 1)]
    # The nearest of the last is the first, which the one before it needs: the next nearest is taken.
    distances = [[0.3, 0.1, 0.2], [0.1, 0.2, 0.3]]
    assert placed(range(3), range(2), lambda own, other: distances[other][own]) == [(0, 0), (1, 1)]


def test_nearest_takes_quarters_of_the_teacher():
    pairs = nearest_pairs(6, 12, lambda own, other: abs(2 * own - other))
    assert [other for _, other in pairs] == [3, 6, 9, 12]
    assert [own for own, _ in pairs] == [1, 3, 4, 6]  # 2 and 4 of 3, 8 and 10 of 9 are as near: the first
    assert nearest_pairs(2, 3, lambda own, other: abs(own - other)) == [(1, 2), (2, 3)]


def test_the_distance_of_pairs():
    torch.manual_seed(0)
    student, teacher = ([torch.randn(2, 3, 4) for _ in range(count)] for count in (3, 5))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    for layers, own, other in (("same", (1, 2), (2, 4)), ([(0, 1)], (0,), (1,))):
        expected = hidden_distance([student[i] for i in own], [teacher[i] for i in other], mask)
        assert torch.equal(paired_distance(student, teacher, layers, mask), expected)
    student[1] = teacher[2] + 0.01  # two layers of the teacher, 2 and 4, and these are the nearest
    student[2] = (teacher[4] + 0.01).requires_grad_()
    distance = paired_distance(student, teacher, "nearest", mask)
    assert float(distance.detach()) == pytest.approx(1e-4, rel=0.9)
    distance.backward()
    assert student[2].grad is not None


def test_what_is_refused():
    with pytest.raises(FinepruneError, match=r"teacher x: has 2 layers, the model 3, .* or give dist"):
        check_pairs("same", 3, 2, "teacher x")
    with pytest.raises(FinepruneError, match=r"\[1, 3\] names a layer that is not there; the model has 3"):
        check_pairs(((1, 3),), 3, 2, "teacher x")
    check_pairs(((3, 2), (0, 0)), 3, 2, "teacher x")
