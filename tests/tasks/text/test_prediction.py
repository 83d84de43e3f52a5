import pytest
import torch

from fineprune.errors import FinepruneError
from fineprune.tasks.modeling import build_model
from fineprune.tasks.text.data import ClassificationData, Examples, encode
from fineprune.tasks.text.prediction import predict, text_lines

TEXTS = ["good", "bad bad bad bad film", "", "very good film", "film", "very very bad a b"]


@pytest.fixture(params=[("neg", "pos"), ("a", "b", "c"), None], ids=["two", "three", "values"])
def trained(request, pretrained):
    torch.manual_seed(1)
    return build_model(pretrained, ClassificationData(None, Examples([]), request.param, "accuracy"))


def test_a_batch_of_the_encoded_trains_the_model(trained):
    from transformers import DataCollatorWithPadding

    model, tokenizer = trained
    labels = [0.5, 2.0] if model.config.num_labels == 1 else [0, 1]
    data = encode(Examples(["good film", "bad"], None, labels), tokenizer, max_length=8)
    batch = DataCollatorWithPadding(tokenizer)(list(data))
    assert batch["input_ids"].tolist() == [[2, 5, 7, 3], [2, 6, 3, 0]]
    assert batch["labels"].dtype == (torch.float32 if model.config.num_labels == 1 else torch.int64)
    model(**batch).loss.backward()
    assert model.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("pairs", [None, ["a", "b", "a b", "", "very", "good"]])
def test_answers_equal_those_of_one_text_at_a_time_in_order(trained, pairs):
    model, tokenizer = trained
    answers = predict(model, tokenizer, TEXTS, pairs, batch_size=4)
    assert len(answers) == len(TEXTS)
    model.eval()
    for index, answer in enumerate(answers):
        pair = None if pairs is None else [pairs[index]]
        with torch.no_grad():
            logits = model(**tokenizer([TEXTS[index]], pair, return_tensors="pt")).logits[0]
        if model.config.num_labels == 1:
            assert answer.label is None
            assert answer.score == pytest.approx(logits.item(), abs=1e-5)
        else:
            best = int(logits.argmax())
            assert answer.label == model.config.id2label[best]
            assert answer.score == pytest.approx((logits[best] - logits.logsumexp(0)).exp().item(), abs=1e-5)
    assert len({round(answer.score, 4) for answer in answers}) > 2  # the texts are told apart


def test_long_texts_are_cut(trained):
    model, tokenizer = trained
    assert predict(model, tokenizer, ["good " * 500], max_length=16) == predict(
        model, tokenizer, ["good " * 14]
    )


def test_texts_are_cut_to_what_the_model_takes(trained):
    model, tokenizer = trained
    limit = model.config.max_position_embeddings
    text = "good " * (limit - 2)
    assert predict(model, tokenizer, ["good " * 500], max_length=10 * limit) == predict(
        model, tokenizer, [text]
    )


def test_no_texts_no_answers(trained):
    assert predict(*trained, []) == []


def test_the_training_mode_of_every_module_is_as_before(trained, monkeypatch):
    model, tokenizer = trained
    model.train()
    model.bert.embeddings.eval()
    before = [module.training for module in model.modules()]
    assert predict(model, tokenizer, ["good"]) == predict(model, tokenizer, ["good"])  # no dropout
    assert [module.training for module in model.modules()] == before
    monkeypatch.setattr(model, "forward", lambda **inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(model, tokenizer, ["good"])
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "good"}, r"texts is one string 'good'; give a list"),
        ({"texts": ["a"], "pairs": "b"}, r"pairs is one string 'b'"),
        ({"texts": ["a", None]}, r"texts\[1\] is None, which is not text"),
        ({"texts": ["a"], "pairs": [3]}, r"pairs\[0\] is 3, which is not text"),
        ({"texts": ["a", "b"], "pairs": ["c"]}, r"2 texts but 1 pairs"),
        ({"texts": ["a"], "batch_size": 0}, r"batch_size is 0, allowed: 1 or more"),
    ],
)
def test_bad_arguments(pretrained, arguments, message):
    model, tokenizer = build_model(pretrained, ClassificationData(None, Examples([]), ("a", "b"), "accuracy"))
    with pytest.raises(FinepruneError, match=message):
        predict(model, tokenizer, **arguments)


def test_lines_have_the_label_the_score_and_the_texts():
    rows = [
        {"text": "good", "label": "pos", "score": 0.5},
        {"text": "bad", "label": None, "score": 2.0},
        {"text": "a", "label": "neg", "score": 0.25, "pair": "b"},
    ]
    assert list(text_lines(rows)) == ["pos\t0.5000\tgood", "2.0000\tbad", "neg\t0.2500\ta\tb"]
