"""The entities of plain text."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.batches import Asked
from fineprune.tasks.tokens.prediction import Entity, predict_entities, predict_rows, text_lines

LABELS = ("O", "B-PER", "I-PER", "B-LOC")


@pytest.fixture
def tagger():
    """`tagger(labels)`: a model whose answer for a token id is that of `ANSWERS`, with logit 2."""
    import torch
    from transformers import BertConfig, BertForTokenClassification

    def make(labels: tuple[str, ...], answers: dict[int, int]):
        model = BertForTokenClassification(
            BertConfig(
                vocab_size=11,
                hidden_size=4,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=4,
                id2label=dict(enumerate(labels)),
            )
        )

        def forward(input_ids, **_):
            logits = torch.zeros(*input_ids.shape, len(labels))
            for token, label in answers.items():
                logits[input_ids == token] = 2.0 * torch.eye(len(labels))[label]
            return SimpleNamespace(logits=logits)

        model.forward = forward
        return model

    return make


def test_entities_of_plain_text(tagger, tokenizer):
    model = tagger(LABELS, {5: 1, 7: 2, 6: 3})  # good B-PER, film I-PER, bad B-LOC
    first, none, second = predict_entities(model, tokenizer, ["very  good\tfilm , bad", " ", "film"])
    share = float(np.exp(2) / (np.exp(2) + 3))
    assert [(e.label, e.text, e.start, e.end) for e in first] == [
        ("PER", "good\tfilm", 6, 15),
        ("LOC", "bad", 18, 21),
    ]
    assert [entity.score for entity in first] == pytest.approx([share, share])
    assert none == []
    assert second == [Entity("PER", "film", 0, 4, pytest.approx(share))]
    assert predict_entities(model, tokenizer, []) == []


def test_a_long_text_is_read_whole(tagger, tokenizer):
    text = "very very good film very bad"
    found = predict_entities(tagger(LABELS, {5: 1, 7: 2, 6: 3}), tokenizer, [text], max_length=5)
    assert [entity.text for entity in found[0]] == ["good film", "bad"]


def test_plain_tags_are_given_for_each_word(tagger, tokenizer):
    found = predict_entities(tagger(("NN", "JJ"), {5: 1}), tokenizer, ["good film"])
    assert [(entity.label, entity.text) for entity in found[0]] == [("JJ", "good"), ("NN", "film")]
    with pytest.raises(FinepruneError, match="one string"):
        predict_entities(tagger(LABELS, {}), tokenizer, "good film")


def test_rows_and_lines(tagger, tokenizer):
    model = tagger(LABELS, {5: 1, 6: 3})
    rows = predict_rows(model, tokenizer, Asked(["good film", "bad"], []))
    share = float(np.exp(2) / (np.exp(2) + 3))
    entity = {"label": "PER", "text": "good", "score": pytest.approx(share), "start": 0, "end": 4}
    assert rows[0] == {"text": "good film", "entities": [entity]}
    score = f"{share:.4f}"
    assert list(text_lines(rows)) == [f"PER\t{score}\t0-4\tgood", "", f"LOC\t{score}\t0-3\tbad"]
    with pytest.raises(FinepruneError, match="finds entities, in single texts; leave the second texts out"):
        predict_rows(model, tokenizer, Asked(["good"], ["bad"]))


def test_a_tokenizer_that_pads_on_the_left(tagger, tokenizer):
    model, texts = tagger(LABELS, {5: 1, 7: 2, 6: 3}), ["very good film , bad", "film"]
    expected = predict_entities(model, tokenizer, texts)
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    assert predict_entities(model, left, texts) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite(tagger, tokenizer, value):
    model = tagger(LABELS, {5: 1, 7: 2})
    forward = model.forward

    def broken(input_ids, **inputs):
        output = forward(input_ids, **inputs)
        output.logits[input_ids == 7] = value
        output.logits[input_ids == 0] = value  # padding does not count
        return output

    model.forward = broken
    assert len(predict_entities(model, tokenizer, ["good", "good good bad"])) == 2
    with pytest.raises(FinepruneError, match=r"output for texts\[1\] is NaN or infinite"):
        predict_entities(model, tokenizer, ["good good good bad", "good " * 9 + "film"], max_length=5)
