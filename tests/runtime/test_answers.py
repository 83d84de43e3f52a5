"""Answers by hand, and against loops that follow the rules word by word."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune_runtime.answers import AnswerRules, Spans, best_answers, best_spans, best_texts
from fineprune_runtime.errors import EngineError
from fineprune_runtime.results import Answer

LOW = -50.0  # of tokens that do not matter


class Made(NamedTuple):
    """Windows as arrays."""

    sizes: list[int]
    columns: dict[str, np.ndarray]

    def lengths(self):
        return np.array(self.sizes)

    def column(self, name):
        return self.columns[name]

    tokens = column


def made(*windows, cls=0):
    """Windows of (question, the characters of each token or None)."""
    places = np.array([place or (-1, -1) for _, row in windows for place in row])
    columns = {
        "question": np.array([question for question, _ in windows]),
        "cls": np.array([cls] * len(windows)),
        "starts": places[:, 0],
        "ends": places[:, 1],
    }
    return Made([len(row) for _, row in windows], columns)


def logits(rows, width=None):
    width = width or max(max(row, default=0) for row in rows) + 1
    return np.array([[row.get(at, LOW) for at in range(width)] for row in rows], dtype=np.float32)


def answers(windows, starts, ends, contexts, width=None, **options):
    width = width or max(windows.lengths())
    return best_answers(
        best_spans(windows, logits(starts, width), logits(ends, width), AnswerRules(**options)), contexts
    )


# [CLS] question [SEP] The cat sat [SEP]
CONTEXT = "The cat sat"
TOKENS = [None, None, None, (0, 3), (4, 7), (8, 11), None]
ONE = made((0, TOKENS))


def test_the_pair_of_the_highest_sum():
    # cat-cat 3 + 1, cat-sat 3 + 2, sat-sat 1 + 2; sat-cat is backwards.
    ((best, second, third, *_),) = answers(ONE, [{4: 3, 5: 1}], [{4: 1, 5: 2}], [CONTEXT])
    assert (best.text, best.start, best.end) == ("cat sat", 4, 11)
    assert (second.text, third.text) == ("cat", "sat")
    total = math.exp(5) + math.exp(4) + math.exp(3)
    assert best.score == pytest.approx(math.exp(5) / total)
    assert third.score == pytest.approx(math.exp(3) / total)


def test_what_cannot_be_an_answer():
    # The highest pairs: of [CLS], of the question, of [SEP], across both, and backwards.
    found = answers(ONE, [{0: 9, 1: 9, 4: 1, 5: 8}], [{0: 9, 2: 9, 4: 7, 6: 9}], [CONTEXT])
    assert found[0][0] == Answer("cat", pytest.approx(1.0), 4, 7)


def test_the_length_is_counted_in_tokens():
    starts, ends = [{3: 5, 5: 1}], [{5: 5}]
    assert answers(ONE, starts, ends, [CONTEXT], max_answer_length=3)[0][0].text == "The cat sat"
    assert answers(ONE, starts, ends, [CONTEXT], max_answer_length=2)[0][0].text == "sat"


def test_only_the_n_best_starts_and_ends_are_paired():
    # Both best starts stand outside the context, and so use up n_best, as in run_qa.
    starts, ends = [{0: 9, 1: 8, 4: 7}], [{4: 9, 5: 8}]
    assert answers(ONE, starts, ends, [CONTEXT], n_best=2) == [[Answer("", 0.0, 0, 0)]]
    found = answers(ONE, starts, ends, [CONTEXT], n_best=3)
    assert [answer.text for answer in found[0]] == ["cat", "cat sat"]


def test_the_best_of_all_windows_and_of_each_question():
    windows = made((0, TOKENS), (0, [None, None, None, (8, 11), None]), (1, TOKENS))
    starts = [{4: 1}, {3: 2}, {3: 0}]
    ends = [{4: 1}, {3: 2}, {3: 0}]
    found = answers(windows, starts, ends, [CONTEXT, "the dog ate"], n_best=2)
    assert [[answer.text for answer in known] for known in found] == [["sat", "cat"], ["the"]]
    assert best_texts(best_spans(windows, logits(starts, 7), logits(ends, 7)), [CONTEXT, "the dog ate"]) == [
        "sat",
        "the",
    ]


def test_equal_scores_go_to_the_first_window_and_the_first_start():
    windows = made((0, [None, (4, 7), (8, 11)]), (0, [None, (0, 3), None]))
    found = answers(windows, [{1: 1, 2: 1}, {1: 1}], [{1: 1, 2: 1}, {1: 1}], [CONTEXT])
    assert [answer.text for answer in found[0]] == ["cat", "cat sat", "sat", "The"]


@pytest.mark.parametrize("behind", [-100.0, 1e30, math.nan])
def test_what_stands_behind_the_end_of_a_window_is_not_looked_at(behind):
    windows = made((0, TOKENS), (1, TOKENS[2:6]))
    values = logits([{4: 1}, {2: 1}], 9)
    values[0, 7:] = values[1, 4:] = behind
    spans = best_spans(windows, values, values)
    assert best_texts(spans, [CONTEXT, CONTEXT]) == ["cat", "cat"]


@pytest.mark.parametrize(("null", "text"), [(3.9, "cat"), (4.0, "cat"), (4.1, "")])
def test_no_answer_where_it_scores_more(null, text):
    starts, ends = [{0: null, 4: 2}], [{0: 0, 4: 2}]
    found = answers(ONE, starts, ends, [CONTEXT], unanswerable=True)
    assert found[0][0].text == text
    assert (found[0][0].start, found[0][0].end) == ((4, 7) if text else (0, 0))
    share = 1 / (1 + math.exp(4 - null))
    assert found[0][0].score == pytest.approx(1 - share if text else share)
    assert answers(ONE, starts, ends, [CONTEXT])[0][0].text == "cat"


def test_no_answer_scores_the_least_of_its_windows_and_against_a_threshold():
    windows = made((0, TOKENS), (0, TOKENS))
    starts, ends = [{0: 9, 4: 2}, {0: 3}], [{0: 0, 4: 2}, {0: 2}]  # 9 and 5 against 4
    for threshold, text in ((0.0, ""), (0.9, ""), (1.0, "cat"), (-9.0, "")):
        spans = best_spans(
            windows, logits(starts, 7), logits(ends, 7), AnswerRules(True, threshold=threshold)
        )
        assert best_texts(spans, [CONTEXT]) == [text]
        assert spans.score.max() == 5


def test_no_answer_is_there_beside_the_n_best():
    starts, ends = [{0: -9, 3: 3, 4: 2, 5: 1}], [{0: -9, 3: 3, 4: 2, 5: 1}]
    found = answers(ONE, starts, ends, [CONTEXT], unanswerable=True, n_best=3)
    assert [answer.text for answer in found[0]] == ["The", "The cat", "The cat sat", ""]


def test_a_context_without_any_token():
    windows = made((0, [None, None]), (1, TOKENS))
    values = logits([{}, {4: 1}], 7)
    for unanswerable in (False, True):
        spans = best_spans(windows, values, values, AnswerRules(unanswerable))
        assert best_texts(spans, ["\u200b", CONTEXT]) == ["", "cat"]
        assert best_answers(spans, ["\u200b", CONTEXT])[0][0].text == ""
    nothing = best_spans(made((0, [None])), logits([{}], 1), logits([{}], 1))
    assert isinstance(nothing, Spans)
    assert best_answers(nothing, [CONTEXT]) == [[Answer("", 0.0, 0, 0)]]


def test_pairs_without_text_do_not_count():
    windows = made((0, [None, (4, 4), (4, 7)]))
    assert answers(windows, [{1: 9}], [{1: 9}], [CONTEXT])[0][0].text == "cat"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_has_no_answers(bad):
    values = logits([{4: bad}], 7)
    with pytest.raises(EngineError, match="NaN or infinity: training diverged"):
        best_spans(ONE, values, values)


def test_logits_that_do_not_fit_are_our_bug():
    with pytest.raises(ValueError, match=r"logits of shape \(1, 3\) for 1 windows of 7"):
        best_spans(ONE, logits([{}], 3), logits([{}], 3))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"n_best": 0}, "n_best is 0, expected a whole number, 1 or more"),
        ({"n_best": True}, "n_best is True, expected a whole number, 1 or more"),
        ({"max_answer_length": 1.5}, "max_answer_length is 1.5, expected a whole number, 1 or more"),
        ({"stride": -1}, "stride is -1, expected a number of tokens, 0 or more"),
        ({"stride": 1.5}, "stride is 1.5, expected"),
        ({"stride": True}, "stride is True, expected"),
        ({"threshold": "a"}, "threshold is 'a', expected a difference of scores, a number"),
        ({"threshold": None}, "threshold is None, expected"),
        ({"threshold": True}, "threshold is True, expected"),
        ({"threshold": float("nan")}, "threshold is nan, expected"),
        ({"unanswerable": "no"}, "unanswerable is 'no', allowed: true, false, or none"),
    ],
)
def test_rules_that_are_refused(rules, message):
    with pytest.raises(EngineError, match=message):
        AnswerRules(**rules)


def test_rules_are_numbers_of_numpy_too():
    rules = AnswerRules(stride=np.int64(0), n_best=np.int32(1), threshold=np.float32(0.5))
    assert (rules.stride, rules.n_best, rules.threshold) == (0, 1, 0.5)
    with pytest.raises(EngineError, match=r"n_best is .*, expected a whole number"):
        AnswerRules(n_best=np.float32(1))


# -- against the rules, word by word --------------------------------------------------------------


def by_loops(windows, starts, ends, contexts, rules):
    """The text of each question, as run_qa's description has it."""
    lengths = windows.lengths()
    places = np.stack([windows.tokens("starts"), windows.tokens("ends")], axis=1)
    begins = np.cumsum(lengths) - lengths
    texts = []
    for question, context in enumerate(contexts):
        candidates, nulls = [], []
        for row in np.flatnonzero(windows.column("question") == question):
            inside = places[begins[row] : begins[row] + lengths[row]]
            start, end = starts[row, : lengths[row]], ends[row, : lengths[row]]
            nulls.append(start[0] + end[0])
            for one in sorted(range(len(start)), key=lambda at: -start[at])[: rules.n_best]:
                for two in sorted(range(len(end)), key=lambda at: -end[at])[: rules.n_best]:
                    if inside[one, 0] < 0 or inside[two, 0] < 0:
                        continue
                    if two < one or two - one + 1 > rules.max_answer_length:
                        continue
                    candidates.append((start[one] + end[two], context[inside[one, 0] : inside[two, 1]]))
        best = max(candidates, key=lambda candidate: candidate[0], default=(-math.inf, ""))
        texts.append("" if rules.unanswerable and min(nulls) > best[0] else best[1])
    return texts


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_answers_are_those_of_the_loops(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    contexts = ["".join(generator.choice(list("abc d"), 40)) for _ in range(data.draw(st.integers(1, 4)))]
    rows = []
    for question in range(len(contexts)):
        for _ in range(data.draw(st.integers(1, 3))):
            first, count = int(generator.integers(0, 20)), int(generator.integers(0, 9))
            inside = [(first + 2 * at, first + 2 * at + 2) for at in range(count)]
            rows.append((question, [None] * int(generator.integers(1, 4)) + inside + [None]))
    windows = made(*rows)
    shape = (len(rows), int(windows.lengths().max()) + data.draw(st.integers(0, 2)))
    starts, ends = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    if data.draw(st.booleans()):  # ties
        starts, ends = starts.round(), ends.round()
    rules = AnswerRules(
        n_best=data.draw(st.integers(1, 6)),
        max_answer_length=data.draw(st.integers(1, 5)),
        unanswerable=data.draw(st.booleans()),
    )
    spans = best_spans(windows, starts, ends, rules)
    expected = by_loops(windows, starts, ends, contexts, rules)
    assert best_texts(spans, contexts) == expected
    found = best_answers(spans, contexts)
    for context, known, text in zip(contexts, found, expected, strict=True):
        assert known[0].text == text
        assert [answer.text for answer in known] == [context[answer.start : answer.end] for answer in known]
        assert sum(answer.score for answer in known) == pytest.approx(1 if known[0].score else 0)


def test_many_windows_in_parts(monkeypatch):
    generator = np.random.default_rng(0)
    windows = made(*((row // 3, TOKENS) for row in range(20)))
    starts, ends = (generator.normal(size=(20, 7)).astype(np.float32) for _ in range(2))
    whole = best_spans(windows, starts, ends, AnswerRules(True))
    monkeypatch.setattr("fineprune_runtime.answers._ROWS", 3)
    parts = best_spans(windows, starts, ends, AnswerRules(True))
    assert all(np.array_equal(one, two) for one, two in zip(whole, parts, strict=True))
