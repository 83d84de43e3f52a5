import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import AddedToken
from transformers import AutoTokenizer, BertConfig, BertModel

from fineprune.errors import FinepruneError
from fineprune.tasks.batches import Asked, as_rows, fitting, longest_first, private_copy, read_texts
from fineprune.tasks.kinds import kind_named


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
    ("asked", "words", "expected"),
    [(8, 512, 8), (99, 512, 12), (99, 5, 5), (99, 5.0, 5), (99, 0, 12), (99, 0.5, 12)],
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
    found = fitting(asked, model, SimpleNamespace(model_max_length=words))
    assert (found, type(found)) == (expected, int)


@pytest.fixture
def hasty_threads():
    """Threads take turns as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("name", ["classification", "token_classification", "question_answering"])
@pytest.mark.usefixtures("hasty_threads")
def test_threads_that_share_a_model_and_its_tokenizer(name, pretrained):
    """A call sets the tokenizer's truncation, which another thread's call would use."""
    kind = kind_named(name)
    torch.manual_seed(0)
    model = getattr(transformers, kind.auto_class).from_pretrained(pretrained)
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    texts = ["good film very bad a b " * count for count in (1, 2, 3)]
    asked = [
        Asked(["bad film"] * 3, texts, length) if kind.suffix.endswith("QuestionAnswering")
        else Asked(texts, [], length)
        for length in (9, 12, 16)
    ]  # fmt: skip
    expected = [kind.predict(model, tokenizer, one) for one in asked]
    assert expected[0] != expected[2]

    def ask(number):
        return kind.predict(model, tokenizer, asked[number % 3])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(36)))
    assert [number for number, one in enumerate(found) if one != expected[number % 3]] == []


def test_a_private_copy_reads_as_the_tokenizer_does_and_has_its_own_truncation(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["new", AddedToken("<x>", special=True)])
    copied = private_copy(tokenizer)
    asked = {"truncation": True, "max_length": 5, "return_offsets_mapping": True}
    texts = ["good new<x> film bad", "new"]
    assert copied(texts, **asked) == tokenizer(texts, **asked)
    tokenizer(texts)
    assert tokenizer.backend_tokenizer.truncation is None
    assert copied.backend_tokenizer.truncation["max_length"] == 5
    python = SimpleNamespace(is_fast=False)
    assert private_copy(python) is python


def test_texts_that_no_model_can_answer():
    with pytest.raises(FinepruneError, match=r"predict: texts\[1\] is 3, which is not text"):
        read_texts(["a", 3], None, 1)
    with pytest.raises(FinepruneError, match=r"predict: pairs\[0\] .* holds a lone surrogate"):
        read_texts(["a"], ["\udcff b"], 1)
    assert read_texts(iter(["a"]), ("b",), 1) == (["a"], ["b"])


def test_the_length_of_the_recipe_is_an_argument_only_where_there_is_one():
    assert Asked(["a"], []).reading() == {}
    assert Asked(["a"], [], 64).reading() == {"max_length": 64}
