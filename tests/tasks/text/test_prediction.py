import pytest
import torch

from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.batches import Asked, tokenizing
from fineprune.tasks.modeling import build_model
from fineprune.tasks.text.data import ClassificationData, Examples, encode
from fineprune.tasks.text.prediction import predict, predict_rows, text_lines

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


def test_a_cross_encoder_reads_what_it_takes(save_body):
    """As `CrossEncoder.predict` does: of 160 tokens the 140th changes the score, for others 128 count."""
    body = save_body(max_position_embeddings=160)
    data = ClassificationData(None, Examples([]), None, "pearson")
    model, tokenizer = build_model(body, data)
    texts = ["good " * 139 + last for last in ("bad", "good")]
    one, other = predict(model, tokenizer, texts, ["good", "good"])
    assert one == other
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    whole = predict(model, tokenizer, texts, ["good", "good"])
    assert whole[0] != whole[1]
    assert predict(model, tokenizer, texts, ["good", "good"], max_length=128) != whole


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
        (
            {"texts": ["a", "b\udcff"]},
            r"texts\[1\] 'b\\udcff' holds a lone surrogate at 1, which is not text",
        ),
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


@pytest.fixture
def several_labels(pretrained):
    """A model of three labels whose logits are 3, 4 and -3 for every text."""
    model, tokenizer = build_model(
        pretrained, ClassificationData(None, Examples([]), ("x", "y", "z"), "accuracy")
    )
    model.config.problem_type = "multi_label_classification"
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([3.0, 4.0, -3.0]))
    return model, tokenizer


def test_a_model_of_several_labels_gives_all_that_are_probable(several_labels):
    model, tokenizer = several_labels
    (found,) = predict(model, tokenizer, ["good"])
    assert [one.label for one in found] == ["y", "x"]
    assert [one.score for one in found] == pytest.approx([0.9820138, 0.9525741])  # 1 / (1 + exp(-logit))
    rows = predict_rows(model, tokenizer, Asked(["good"], []))
    assert [one["label"] for one in rows[0]["labels"]] == ["y", "x"]
    assert list(text_lines(rows)) == ["y 0.9820, x 0.9526\tgood"]
    assert list(text_lines([{"text": "a", "labels": [], "pair": "b"}])) == ["(no label)\ta\tb"]


def test_a_model_of_several_labels_that_is_trained_for_one(several_labels, tmp_path):
    model, tokenizer = several_labels
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    data = ClassificationData(None, Examples(["a"]), ("x", "y", "z"), "accuracy")
    with pytest.warns(FinepruneWarning, match=r"gave several labels to a text .* trained to give one"):
        model, _ = build_model(str(tmp_path), data)
    assert model.config.problem_type == "single_label_classification"


def test_texts_for_a_model_of_pairs(pretrained):
    for pairs, given, message in (
        (["b"], None, r"trained on pairs of texts; give the second text of each, --pair .* pairs="),
        (None, ["b"], r"trained on single texts; leave the second texts out, --pair .* pairs="),
    ):
        data = ClassificationData(None, Examples(["a"], pairs), ("x", "y"), "accuracy")
        model, tokenizer = build_model(pretrained, data)
        assert model.config.fineprune_text_pairs is (pairs is not None)
        assert len(predict(model, tokenizer, ["a"], pairs)) == 1
        with pytest.raises(FinepruneError, match=message):
            predict(model, tokenizer, ["a"], given)


def test_an_output_that_is_not_finite(trained):
    model, tokenizer = trained
    row = tokenizer.convert_tokens_to_ids("film")
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[row] = value
        with pytest.raises(
            FinepruneError, match=r"output for texts\[2\] is NaN or infinite: its weights are"
        ):
            predict(model, tokenizer, ["good bad good", "a", "film"], batch_size=2)


def test_errors_of_the_tokenizers_library():
    panic = type("PanicException", (BaseException,), {})
    for error, expected in (
        (Exception("no unk"), FinepruneError),
        (panic("unwrap"), FinepruneError),
        (KeyError("ours"), KeyError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(expected), tokenizing():
            raise error
