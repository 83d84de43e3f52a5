"""The lengths of rows, of a list and of a data set."""

import pytest
from datasets import Dataset

from fineprune import FinepruneError
from fineprune.training.distillation.row_lengths import are_tokenized, lengths_of


def test_lengths_of_lists_and_data_sets():
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": []}, {"input_ids": [4]}]
    assert lengths_of(rows) == [3, 0, 1]
    assert lengths_of(Dataset.from_list(rows)) == [3, 0, 1]


def test_rows_without_tokens():
    rows = [{"pixel_values": [0.5], "labels": 0}, {"input_ids": [1], "labels": 1}]
    assert [are_tokenized(found) for found in (rows, rows[:1], rows[1:], [("a text", 1)], None)] == [
        *[False] * 2,
        True,
        *[False] * 2,
    ]
    assert [are_tokenized(Dataset.from_list([row])) for row in rows] == [False, True]
    for without in (rows, Dataset.from_list(rows[:1])):
        with pytest.raises(
            FinepruneError, match=r"have no input_ids, so their lengths .*; tokenize them, or"
        ):
            lengths_of(without)
