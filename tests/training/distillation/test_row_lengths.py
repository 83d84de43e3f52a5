"""The lengths of rows, of a list and of a data set."""

from datasets import Dataset

from fineprune.training.distillation.row_lengths import lengths_of


def test_lengths_of_lists_and_data_sets():
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": []}, {"input_ids": [4]}]
    assert lengths_of(rows) == [3, 0, 1]
    assert lengths_of(Dataset.from_list(rows)) == [3, 0, 1]
