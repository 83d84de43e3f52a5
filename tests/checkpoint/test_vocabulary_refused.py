"""Where a vocabulary cannot shrink, the model and the tokenizer stay as they were."""

import copy
from types import SimpleNamespace

import pytest

from fineprune.checkpoint.vocabulary import shrink_vocabulary
from fineprune.errors import FinepruneError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, "a", "b", "##a", "##b", "cab", "ab", "##ba", "abba", "c", "##c", "[unused]"]
CORPUS = ["ab abba", ("abba", "a ab"), "b", "ab?"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], r"texts is \[\]; give a list of strings or pairs of strings"),
        ("abba", r"texts is 'abba'; give a list"),
        (["a", 7], r"texts\[1\] is 7; give strings or tuples of two strings"),
        ([("a", None)], r"texts\[0\] is \('a', None\); give strings"),
        ([("a", "b", "c")], r"texts\[0\] is \('a', 'b', 'c'\); give strings"),
        (["\ud800"], r"texts\[0\] is '\\ud800'; give strings .* in valid Unicode"),
        ([list("abc" * 40)], r"texts\[0\] is \['a', 'b', .{60,70}…; give strings"),
    ],
)
def test_refuses_these_texts(texts, message, bert_of, same_weights):
    model, tokenizer = bert_of(TOKENS)
    before = copy.deepcopy(model)
    with pytest.raises(FinepruneError, match=message):
        shrink_vocabulary(model, tokenizer, texts)
    assert same_weights(model, before)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForPreTraining"])
@pytest.mark.parametrize("tied", [True, False])
def test_refuses_a_model_that_predicts_tokens(head, tied, bert_of, same_weights):
    model, tokenizer = bert_of(TOKENS, head, tie_word_embeddings=tied)
    before = copy.deepcopy(model)
    with pytest.raises(FinepruneError, match=f"Bert{head} predicts tokens.*give a classifier"):
        shrink_vocabulary(model, tokenizer, CORPUS)
    assert same_weights(model, before)
    assert model.config.to_dict() == before.config.to_dict()


def test_refuses_a_model_without_token_embeddings(make_dense, bert_of):
    with pytest.raises(FinepruneError, match="ViTModel has no plain table of token embeddings"):
        shrink_vocabulary(make_dense("vit").vit, bert_of(TOKENS)[1], CORPUS)


def test_refuses_these_tokenizers(bert_of):
    from tokenizers import pre_tokenizers
    from transformers import ByT5Tokenizer

    model, tokenizer = bert_of(TOKENS)
    with pytest.raises(
        FinepruneError, match="ByT5Tokenizer is a slow tokenizer; only fast ones with a model"
    ):
        shrink_vocabulary(model, ByT5Tokenizer(), CORPUS)
    other = SimpleNamespace(is_fast=True, backend_tokenizer=SimpleNamespace(model=3j))
    with pytest.raises(
        FinepruneError, match=r"is a complex tokenizer; only .* BPE, Unigram, WordLevel, WordPiece"
    ):
        shrink_vocabulary(model, other, CORPUS)
    with pytest.raises(FinepruneError, match="has ids up to 15, but the model has 10 rows"):
        shrink_vocabulary(bert_of(TOKENS, rows=10)[0], tokenizer, CORPUS)
    tokenizer.model_max_length = "many"
    with pytest.raises(FinepruneError, match="BertTokenizer cannot tokenize the texts: "):
        shrink_vocabulary(model, tokenizer, CORPUS)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(SimpleNamespace())
    with pytest.raises(FinepruneError, match=r"BertTokenizer cannot be copied: .*Custom PreTokenizer"):
        shrink_vocabulary(model, tokenizer, CORPUS)


def test_refuses_a_tokenizer_that_does_not_come_back(monkeypatch, bert_of):
    model, tokenizer = bert_of(TOKENS)
    other = bert_of([*reversed(TOKENS)])[1]
    monkeypatch.setattr(type(tokenizer), "from_pretrained", lambda folder: other)
    with pytest.raises(FinepruneError, match=r"BertTokenizer loads with other ids than its tokenizer\.json"):
        shrink_vocabulary(model, tokenizer, CORPUS)
    monkeypatch.setattr(type(tokenizer), "from_pretrained", lambda folder: 1 / 0)
    with pytest.raises(FinepruneError, match="cannot be saved, shrunk and loaded again: division by zero"):
        shrink_vocabulary(model, tokenizer, CORPUS)


def test_refuses_a_text_that_would_be_encoded_otherwise(bert_of, same_weights):
    # abcd is unknown: WordPiece takes abc and finds no ##d. Without abc it would take ab and ##cd.
    tokens = [*SPECIAL, "a", "b", "c", "##a", "##b", "##c", "ab", "abc", "##cd"]
    model, tokenizer = bert_of(tokens)
    before = copy.deepcopy(model)
    with pytest.raises(FinepruneError, match="'abcd' would get other tokens, so no weights were changed"):
        shrink_vocabulary(model, tokenizer, ["ab", "acd", "abcd"])
    assert same_weights(model, before)
    assert model.config.to_dict() == before.config.to_dict()
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(tokens)}
    shrink_vocabulary(model, tokenizer, ["ab", "acd"])
