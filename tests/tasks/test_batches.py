from types import SimpleNamespace

import pytest
from transformers import BertConfig, BertModel

from fineprune.errors import FinepruneError
from fineprune.tasks.batches import Asked, as_rows, check_texts, fitting, longest_first


def test_the_longest_texts_come_first_and_each_once():
    assert list(longest_first([3, 9, 1, 9, 4], 2)) == [[1, 3], [4, 0], [2]]
    assert list(longest_first([], 2)) == []


def test_columns_become_rows():
    columns = {"input_ids": [[1], [2, 3]], "attention_mask": [[1], [1, 1]]}
    assert as_rows(columns) == [
        {"input_ids": [1], "attention_mask": [1]},
        {"input_ids": [2, 3], "attention_mask": [1, 1]},
    ]


@pytest.mark.parametrize(
    ("asked", "words", "expected"), [(8, 512, 8), (99, 512, 12), (99, 5, 5), (99, 0, 12)]
)
def test_the_shortest_limit_counts(asked, words, expected):
    model = BertModel(
        BertConfig(
            vocab_size=5,
            hidden_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=4,
            max_position_embeddings=12,
        )
    )
    assert fitting(asked, model, SimpleNamespace(model_max_length=words)) == expected


def test_texts_that_no_model_can_answer():
    with pytest.raises(FinepruneError, match=r"predict: texts\[1\] is 3, which is not text"):
        check_texts(["a", 3], None, 1)
    with pytest.raises(FinepruneError, match=r"predict: pairs\[0\] .* holds a lone surrogate"):
        check_texts(["a"], ["\udcff b"], 1)
    check_texts(["a"], ["b"], 1)


def test_the_length_of_the_recipe_is_an_argument_only_where_there_is_one():
    assert Asked(["a"], []).reading() == {}
    assert Asked(["a"], [], 64).reading() == {"max_length": 64}
