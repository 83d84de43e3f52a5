"""A model that goes on training with longer texts is served with these, too."""

import pytest

from fineprune.training.host.serving_length import widen_serving_length
from fineprune_runtime.results import MAX_LENGTH

ROWS = [{"input_ids": [1, 2, 3]}, {"input_ids": [1, 2, 3, 4, 5]}]


@pytest.mark.parametrize(
    ("told", "rows", "expected"),
    [
        (4, ROWS, 5),
        (8, ROWS, 8),
        (4, [{"text": "a very long film"}], 4),
        (4, [], 4),
        (4, None, 4),
        (None, ROWS, None),
    ],
)
def test_the_longest_training_text_counts(make_model, told, rows, expected):
    model = make_model()
    if told is not None:
        setattr(model.config, MAX_LENGTH, told)
    widen_serving_length(model, rows)
    assert getattr(model.config, MAX_LENGTH, None) == expected


def test_a_trainer_does_so(make_trainer, make_model):
    """The longest of its rows has 7 words, so 9 tokens."""
    model = make_model()
    setattr(model.config, MAX_LENGTH, 6)
    make_trainer(None, given={"model": model})
    assert getattr(model.config, MAX_LENGTH) == 9
