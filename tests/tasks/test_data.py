from datasets import Dataset

from fineprune.tasks.data import Evaluation, by_length


def test_rows_of_one_length_keep_their_order():
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3], [4, 5, 6], [7]], "labels": [0, 1, 2, 3]})
    assert by_length(rows)["labels"][:] == [1, 3, 0, 2]


def test_an_evaluation_has_no_further_sets_unless_they_are_given():
    rows = Dataset.from_dict({"input_ids": [[1]]})
    one, two = Evaluation(rows, dict), Evaluation(rows, dict)
    assert one.more == {}
    assert one.more is not two.more
