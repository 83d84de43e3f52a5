"""Scores by hand; the answers themselves are in tests/runtime/test_answers.py."""

import numpy as np
import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.questions.context_windows import make_windows
from fineprune.tasks.questions.spans import best_spans, best_texts, score_texts
from fineprune.tasks.questions.squad import Questions, Span, read_file


def asked(*truths):
    count = len(truths)
    spans = [[Span(text, 0) for text in truth] for truth in truths]
    return Questions([str(row) for row in range(count)], ["?"] * count, ["x"] * count, spans)


def test_scores_by_hand():
    # Equal but for case, article and full stop; 1 of 2 words, and 1 of 1: F1 2/3; nothing right.
    read = asked(["the Cat."], ["black cat"], ["cat"])
    assert score_texts(["cat", "cat", "dog"], read) == {
        "exact_match": pytest.approx(1 / 3),
        "f1": pytest.approx((1 + 2 / 3 + 0) / 3),
    }


def test_of_several_answers_the_best_counts():
    assert score_texts(["black cat"], asked(["dog", "black cat", "cat"])) == {"exact_match": 1.0, "f1": 1.0}


def test_where_there_is_no_answer_nothing_is_right():
    read = asked([], [], ["cat"])
    assert score_texts(["", "cat", ""], read) == {
        "exact_match": pytest.approx(1 / 3),
        "f1": pytest.approx(1 / 3),
    }


def test_answers_without_words_do_not_count_where_questions_may_have_none():
    """As in the official script of v2: "" is right where no answer has a word, else it is wrong."""
    read = asked(["cat -", "-"], ["The!", "a"], ["-", "cat"])
    texts = ["", "", "Cat."]
    assert score_texts(texts, read, unanswerable=True) == pytest.approx({"exact_match": 2 / 3, "f1": 2 / 3})
    assert score_texts(texts, read) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_model_has_no_answers(bad, tokenizer):
    windows = make_windows(Questions(["q"], ["good"], ["very bad film"], [[]]), tokenizer, 16)
    values = np.full((1, 7), bad, dtype=np.float32)
    with pytest.raises(FinepruneError, match="NaN or infinity: training diverged; lower the learning rate"):
        best_spans(windows, values, values)


@pytest.mark.realdata
def test_logits_of_the_true_answers_score_nearly_one(realdata):
    """Of 5,397 answers 22 begin or end inside a token, and 3 are longer than 30 tokens.

    Three of these happen to be another of the true answers, so the exact match is 5,375 of 5,397.
    """
    from transformers import AutoTokenizer

    from fineprune.checkpoint.model_folder import minilm_folder

    read = read_file(realdata / "squad" / "dev-v1.1.json")
    windows = make_windows(read, AutoTokenizer.from_pretrained(minilm_folder()), 384)
    starts, ends = np.zeros((2, len(windows), 384), dtype=np.float32)
    rows = np.arange(len(windows))
    one, last = windows.column("start_positions"), windows.column("end_positions")
    starts[rows, one] = ends[rows, last] = 9
    texts = best_texts(best_spans(windows, starts, ends), read.contexts)
    scores = score_texts(texts, read)
    assert scores == {"exact_match": pytest.approx(5375 / 5397), "f1": pytest.approx(0.9964980, abs=1e-6)}
    other = {row for row, text in enumerate(texts) if text != read.answers[row][0].text}
    longer = set(windows.column("question")[last - one >= 30].tolist())
    assert (len(longer), len(other - longer)) == (3, 22)
    assert longer <= other
