import pytest
from datasets import Dataset

from fineprune.errors import FinepruneWarning
from fineprune.tasks.data import (
    Evaluation,
    by_length,
    warn_of_leak,
    warn_of_near_labels,
    warn_of_unknown_labels,
)


def test_rows_of_one_length_keep_their_order():
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3], [4, 5, 6], [7]], "labels": [0, 1, 2, 3]})
    assert by_length(rows)["labels"][:] == [1, 3, 0, 2]


def test_an_evaluation_has_no_further_sets_unless_they_are_given():
    rows = Dataset.from_dict({"input_ids": [[1]]})
    one, two = Evaluation(rows, dict), Evaluation(rows, dict)
    assert one.more == {}
    assert one.more is not two.more


@pytest.mark.parametrize(
    ("warn", "given", "said"),
    [
        (warn_of_leak, (range(12), list(range(2, 22))), "v: 10 of 20 rows .50%. are in the training data"),
        (warn_of_leak, (range(12), list(range(3, 23))), None),  # few rows
        (warn_of_leak, (range(12), list(range(2, 300))), None),  # a small share
        (warn_of_near_labels, (["Pos", "neg", "pos "],), "v: the labels 'Pos', 'pos ' differ only in case"),
        (warn_of_near_labels, (["pos", "neg"],), None),
        (warn_of_unknown_labels, (["a", "b", "c"], [0, 0], [2, 0, 1]), "v: no training row has .* 'b', 'c'"),
        (warn_of_unknown_labels, (["a", "b", "c"], [0, 1], [1, 1]), None),
    ],
)
def test_what_is_probably_a_mistake_in_the_data(recwarn, warn, given, said):
    if said is None:
        warn("v", *given)
        assert not recwarn.list
        return
    with pytest.warns(FinepruneWarning, match=said):
        warn("v", *given)
