"""Answers of a trained model in contexts."""

import math

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from fineprune import FinepruneError
from fineprune.tasks.questions.prediction import answer, text_lines
from fineprune.tasks.questions.spans import Answer, AnswerRules


@pytest.fixture
def trained(pretrained):
    torch.manual_seed(1)
    return AutoModelForQuestionAnswering.from_pretrained(pretrained), AutoTokenizer.from_pretrained(
        pretrained
    )


def test_answers_equal_those_of_one_question_at_a_time_in_order(trained):
    questions = ["good", "bad", "good film", "very", "a"]
    contexts = ["film a b", "very bad film", "b " * 40 + "good", "a", "b b good film"]
    together = answer(*trained, questions, contexts, batch_size=3)
    for question, context, best in zip(questions, contexts, together, strict=True):
        (alone,) = answer(*trained, [question], [context])
        assert (alone.text, alone.start, alone.end) == (best.text, best.start, best.end)
        assert alone.score == pytest.approx(best.score, abs=1e-5)
    assert answer(*trained, [], []) == []


def test_the_answer_of_the_logits(trained):
    model, tokenizer = trained
    model.eval()
    encoded = tokenizer("good", "film a b", return_tensors="pt")  # [CLS] good [SEP] film a b [SEP]
    with torch.no_grad():
        output = model(**encoded)
    start, end = output.start_logits[0, 3:6].tolist(), output.end_logits[0, 3:6].tolist()
    pairs = {(one, two): start[one] + end[two] for one in range(3) for two in range(one, 3)}
    one, two = max(pairs, key=pairs.__getitem__)
    (best,) = answer(model, tokenizer, ["good"], ["film a b"])
    assert best.text == " ".join(["film", "a", "b"][one : two + 1])
    assert best.score == pytest.approx(
        math.exp(pairs[one, two]) / sum(map(math.exp, pairs.values())), rel=1e-4
    )


def test_modes_are_kept_and_nothing_is_found_where_nothing_is(trained):
    model, tokenizer = trained
    model.train()
    assert answer(model, tokenizer, ["good"], [""]) == [Answer("", 0.0, 0, 0)]
    assert model.training
    (best,) = answer(model, tokenizer, ["good"], ["film"], AnswerRules(True))
    assert best.text in ("", "film")


@pytest.mark.parametrize(
    ("questions", "contexts", "message"),
    [
        ("good", ["a"], "one string 'good'; give a list"),
        (["good"], ["a", "b"], "1 texts but 2 pairs"),
        (["good"], [None], r"\[0\] is None, which is not text"),
    ],
)
def test_what_cannot_be_answered(trained, questions, contexts, message):
    with pytest.raises(FinepruneError, match=message):
        answer(*trained, questions, contexts)


def test_a_model_that_does_not_answer(pretrained, trained):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(pretrained)
    with pytest.raises(FinepruneError, match="BertForSequenceClassification, which has no logits of starts"):
        answer(model, trained[1], ["good"], ["film"])


def test_a_line_has_the_answer_the_score_and_the_question():
    rows = [
        {"answer": "a\nfilm", "score": 0.5, "text": "what"},
        {"answer": "", "score": 0.25, "text": "who"},
    ]
    assert list(text_lines(rows)) == ["a film\t0.5000\twhat", "(no answer)\t0.2500\twho"]


def test_an_output_that_is_not_finite(trained):
    model, tokenizer = trained
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("film")] = float("nan")
    with pytest.raises(FinepruneError, match=r"output for texts\[1\] is NaN or infinite"):
        answer(model, tokenizer, ["good", "bad"], ["very " * 40, "a " * 40 + "film"], max_length=24)
