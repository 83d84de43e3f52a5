from types import SimpleNamespace

import pytest
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from fineprune import FinepruneError
from fineprune.tasks.model_config import is_regression, label_settings, labels_of, longest_input

SIZES = {
    "vocab_size": 5,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
    "max_position_embeddings": 12,
}


def test_labels_are_written_and_read_by_id():
    assert label_settings(["neg", "pos"]) == {
        "id2label": {0: "neg", 1: "pos"},
        "label2id": {"neg": 0, "pos": 1},
    }
    model = SimpleNamespace(config=BertConfig(**label_settings(["neg", "pos"])))
    assert labels_of(model) == ("neg", "pos")
    model.config.id2label[0] = True  # as JSON may have it; the runtime reads text, too
    assert labels_of(model) == ("True", "pos")


@pytest.mark.parametrize(
    ("problem", "outputs", "expected"),
    [("regression", 2, True), (None, 1, True), ("single_label_classification", 2, False), (None, 2, False)],
)
def test_a_regression_says_so_or_has_one_output(problem, outputs, expected):
    config = BertConfig(num_labels=outputs, problem_type=problem)
    assert is_regression(SimpleNamespace(config=config)) is expected


def test_the_longest_input_is_that_of_the_positions():
    assert longest_input(BertModel(BertConfig(**SIZES))) == 12
    # RoBERTa's positions count from 2 where the padding id is 1: the first two rows are never used.
    assert longest_input(RobertaModel(RobertaConfig(**SIZES, pad_token_id=1))) == 10
    assert longest_input(RobertaModel(RobertaConfig(**SIZES, pad_token_id=0))) == 11
    with pytest.raises(FinepruneError, match=r"pad_token_id in config.json is -1: a RobertaModel counts"):
        longest_input(RobertaModel(RobertaConfig(**SIZES, pad_token_id=-1)))
    same = SIZES | {"vocab_size": SIZES["max_position_embeddings"]}  # the words' table has a padding id too
    assert longest_input(BertModel(BertConfig(**same, pad_token_id=3))) == 12


@pytest.mark.parametrize("limit", [None, -1, 0, "12"])
def test_a_model_that_does_not_say_has_no_limit(limit):
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=limit))
    assert longest_input(model) is None
    assert longest_input(SimpleNamespace(config=SimpleNamespace())) is None
