"""The paper's numbers stand where its tables have them."""

import pytest

from fineprune.study.grid import Cell
from fineprune.study.paper import numbers


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("squad", "dense", None, None, False), (80.4, 88.1)),
        (("squad", "magnitude", 0.1, None, False), (67.7, 78.5)),
        (("squad", "soft_movement", 0.03, None, True), (72.9, 82.4)),
        (("mnli", "l0", 0.03, None, False), (75.2, 75.6)),
        (("mnli", "movement", 0.1, None, True), (80.1, 80.4)),
        (("qqp", "movement", 0.03, None, False), (85.6, 81.0)),
        (("qqp", "soft_movement", 0.1, None, True), (90.5, 87.1)),
        (("mrpc", "movement", 0.1, None, False), None),
        (("mnli", "movement", 0.15, None, False), None),
        (("mnli", "movement", 0.1, "global", False), None),
        (("mnli", "dense", None, None, True), None),
    ],
)
def test_numbers(cell, expected):
    assert numbers(Cell(*cell, seed=0)) == numbers(Cell(*cell, seed=9)) == expected
