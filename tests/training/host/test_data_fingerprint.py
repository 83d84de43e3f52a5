"""Fingerprints: the same for the same content in any layout, another for any other content or order."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import TensorDataset
from transformers import BatchEncoding

from fineprune.training.host.data_fingerprint import fingerprint

COLUMNS = {
    "input_ids": [[5, 7], [6], [], [8, 9, 10]],
    "labels": [0, 1, None, 1],
    "score": [0.5, 1.5, 2.5, float("nan")],
    "text": ["a", "b", None, "d"],
    "tags": [{"on": row != 1, "at": [row] * row} for row in range(4)],
}
ROWS = [{name: values[row] for name, values in COLUMNS.items()} for row in range(4)]


def table(**columns):
    return Dataset.from_dict(COLUMNS | columns)


@pytest.mark.parametrize(
    "other",
    [
        table(labels=[0, 1, 0, 1]),
        table(labels=[0, None, 1, 1]),
        table(input_ids=[[5], [7, 6], [], [8, 9, 10]]),
        table(input_ids=[[5, 7], [], [6], [8, 9, 10]]),
        table(text=["ab", "", None, "d"]),
        table(tags=[*COLUMNS["tags"][:3], {"on": True, "at": [4]}]),
        table().select([0, 1, 3, 2]),
        table().select(range(3)),
        table().rename_column("labels", "label"),
    ],
)
def test_tables_that_differ(other):
    assert fingerprint(other) != fingerprint(table())


def test_a_table_is_its_content():
    plain = fingerprint(table())
    assert plain.startswith("4 rows, ")
    assert plain == fingerprint(table())
    assert plain == fingerprint(Dataset.from_list(ROWS))
    parts = Dataset.from_dict({name: values * 2 for name, values in COLUMNS.items()})
    assert plain == fingerprint(parts.select(range(4, 8)))  # a slice, whose buffers begin elsewhere
    transformed = table().with_transform(lambda batch: {"noise": [torch.rand(1)] * len(batch["labels"])})
    assert plain == fingerprint(transformed)


@pytest.mark.parametrize(
    ("rows", "same"),
    [
        ([{"ids": [1, 2], "labels": 0}], [{"ids": torch.tensor([1, 2]), "labels": np.int64(0)}]),
        ([{"ids": [1, 2]}], (BatchEncoding({"ids": [1, 2]}),)),
        ([], ()),
    ],
)
def test_plain_rows(rows, same):
    assert fingerprint(rows) == fingerprint(same)
    assert fingerprint(rows) != fingerprint([*rows, {"ids": [3]}])
    assert fingerprint([*rows, {"ids": [3]}]) != fingerprint([{"ids": [3]}, *rows]) or not rows


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([{"ids": object()}] * 3, "3 rows"),  # its text has an address, another in each process
        (TensorDataset(torch.ones(5)), "5 rows"),
        ((row for row in ROWS), None),
        (None, None),
        ({"a": TensorDataset(torch.ones(5)), "b": None}, {"a": "5 rows", "b": None}),
    ],
    ids=["objects", "torch", "stream", "none", "several"],
)
def test_data_that_are_not_read(data, expected):
    assert fingerprint(data) == expected
