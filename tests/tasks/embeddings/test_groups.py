"""Labeled texts from files: which columns are read, what is dropped, and what is refused."""

import json

import pytest

from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.embeddings.groups import read_groups
from fineprune.tasks.embeddings.task import EmbeddingConfig

STS = "sentence1\tsentence2\tscore\n"
PAIRS = "".join(f"a{at}\tb{at}\n" for at in range(20))


def test_blank_and_repeated_rows_are_counted_and_dropped(write):
    table = write("a.tsv", f"{STS}a\tb\t1\n c\td\t2\na\tb\t1\n \td\t2\na\tb\t3\n")
    read = read_groups(table, "cosent", ("sentence1", "sentence2"), scored=True)
    assert read.rows == [("a", "b"), ("c", "d"), ("a", "b")]
    assert (read.scores, read.blank, read.repeated) == ([1.0, 2.0, 3.0], 1, 1)
    assert read.texts.texts == ["a", "b", "c", "d"]
    assert read.without(["c"]).scores == [1.0, 3.0]


def test_a_right_text_and_a_wrong_one_are_read_if_they_are_there(write):
    pairs = "".join(f"q{at}\tt{at}\n" for at in range(20))
    triplets = "".join(f"q{at}\tt{at}\tn{at}\n" for at in range(20))
    named = "".join(f"n{at}\tq{at}\tt{at}\n" for at in range(20))
    for content, text, first in (
        (f"query\ttext\n{pairs}", "text", ("q0", "t0")),
        (f"query\ttext\tnegative\n{triplets}", "text", ("q0", "t0", "n0")),
        (f"no\tquestion\tpassage\n{named}", ["question", "passage"], ("q0", "t0")),
    ):
        with pytest.warns(match="different rows to learn from"):
            data = EmbeddingConfig(train=write("t.tsv", content), text=text, loss="ranking").load()
        assert data.groups.rows[0] == first
        assert data.groups.scores is None
        # The last of the different texts are held out, at least 4; their rows are not learned from.
        assert "t19" in data.validation
        assert data.sizes()["train"] == len(data.groups.rows) < 20
        assert not set(data.validation) & {text for row in data.groups.rows for text in row}


def test_the_texts_of_pairs_alone_are_named(write):
    table = write("a.tsv", f"query\ttext\n{PAIRS}")
    for text, first in ((["text"], "b0"), (["query", "text"], "a0")):
        with pytest.warns(match="different texts to learn from"):
            assert EmbeddingConfig(train=table, text=text).load().train.texts[0] == first


def test_squads_questions_and_paragraphs_are_pairs(write):
    answer = {"text": "c", "answer_start": 0}
    qas = [{"id": str(at), "question": f"q{at}", "answers": [answer] * (at < 2)} for at in range(3)]
    place = write("s.json", json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": qas}]}]}))
    with pytest.warns(FinepruneWarning, match=r"s\.json: 1 of 3 questions have no answer and are dropped"):
        groups = read_groups(place, "ranking", (), scored=False)
    assert groups.rows == [("q0", "c"), ("q1", "c")]  # SQuAD v2 has questions that no paragraph answers


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.tsv", "a\tb\nc\td\n", {"loss": "cosent"}, "no column 'sentence1'; it has 'a', 'b'"),
        ("a.tsv", f"sentence1\tsentence2\n{PAIRS}", {"loss": "cosent"}, "no column 'score'"),
        ("a.txt", PAIRS, {"loss": "ranking"}, r"has no pairs of texts"),
        ("a.json", "{}", {"loss": "cosent"}, r"has no scores"),
        ("a.tsv", f"{STS}a\tb\t1\n", {}, r"'sentence1', 'sentence2'; task\.loss=cosent"),
        ("a.tsv", f"query\ttext\n{PAIRS}", {}, r"\.loss=ranking .*\[query, text\]' .*\[text\]' from that"),
        ("a.tsv", "query\tanswer\na\tb\n", {"loss": "ranking"}, "no column 'text'"),
    ],
)
def test_files_without_what_is_learned_are_refused(write, name, content, settings, message):
    config = EmbeddingConfig(train=write(name, content), **settings)
    with pytest.raises(FinepruneError, match=message):
        config.check_files()
    with pytest.raises(FinepruneError, match=message):
        config.load()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a\tb\tgood\n", "row 1: score is 'good', expected a number"),
        ("a\tb\t1\nc\td\tinf\n", "row 2: score is 'inf', expected a finite number"),
        ("a\tb\t1\nc\td\t1\n", "all scores are 1; the loss needs different ones"),
    ],
)
def test_scores_that_are_no_numbers_are_refused(write, rows, message):
    with pytest.raises(FinepruneError, match=message):
        read_groups(write("a.tsv", STS + rows), "cosent", ("sentence1", "sentence2"), scored=True)


def test_too_few_rows_are_refused(write):
    validation = write("v.txt", "a\nb\nc\nd\n")
    train = write("t.tsv", f"{STS}a\tx\t1\ny\tz\t2\nb\tu\t3\n")
    with pytest.raises(FinepruneError, match="without the texts to score on: 1 different row; at least 4"):
        EmbeddingConfig(train=train, validation=validation, loss="cosent").load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, r"task\.loss='mse'"),
        ({"loss": "cosent", "text": ["a"]}, r"task\.text=\['a'\]: task\.loss=cosent compares"),
        ({"loss": "cosent", "text": ["a", "b", "c"]}, "compares the texts of two columns; name them"),
        ({"matryoshka": [8, 4]}, r"matryoshka=\[8, 4\]: is about the loss of labeled texts; give task\.loss"),
        ({"loss": "cosent", "matryoshka": [0]}, "expected sizes of embeddings, such as"),
        ({"loss": "cosent", "matryoshka": 8}, r"task\.matryoshka=8: expected sizes"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(FinepruneError, match=message):
        EmbeddingConfig(train="a.tsv", **settings)
