"""Reading questions: what is read, and that whatever is wrong is said in one line."""

import json
import logging

import pyarrow
import pyarrow.parquet
import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.questions import squad
from fineprune.tasks.questions.squad import Questions, Span, read_file, read_split

CONTEXT = "Ada was born in London."
BORN = {"id": "q1", "question": "Where?", "answers": [{"text": "London", "answer_start": 16}]}
READ = Questions(["q1"], ["Where?"], [CONTEXT], [[Span("London", 16)]])


def nested(*questions, context=CONTEXT):
    return {
        "version": "1.1",
        "data": [{"title": "Ada", "paragraphs": [{"context": context, "qas": questions}]}],
    }


def flat(**changes):
    return BORN | {"context": CONTEXT, "answers": {"text": ["London"], "answer_start": [16]}} | changes


@pytest.fixture
def save(write):
    return lambda value, name="q.json": write(name, json.dumps(value))


def test_the_official_nesting(save):
    answers = [{"text": "dog", "answer_start": 9}, {"text": "A dog", "answer_start": 7}]
    first = {"context": "A cat. A dog.", "qas": [BORN | {"id": "a", "answers": answers}]}
    second = {"context": CONTEXT, "qas": [BORN, BORN | {"id": "q2"}]}
    value = {"data": [{"paragraphs": [first]}, {"paragraphs": [second]}, {"paragraphs": []}]}
    read = read_file(save(value))
    assert read.ids == ["a", "q1", "q2"]
    assert read.contexts == ["A cat. A dog.", CONTEXT, CONTEXT]
    assert read.answers == [[Span("dog", 9), Span("A dog", 7)], [Span("London", 16)], [Span("London", 16)]]


def test_rows(write, tmp_path):
    assert read_file(write("q.jsonl", json.dumps(flat()) + "\n")) == READ
    assert read_file(write("l.jsonl", json.dumps(flat(answers=BORN["answers"])))) == READ
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([flat()]), tmp_path / "q.parquet")
    assert read_file(tmp_path / "q.parquet") == READ


def test_the_hub(monkeypatch):
    def read(name, subset, split, columns):
        assert (name, subset, split, columns) == ("squad", None, "validation", squad.COLUMNS)
        return {column: [flat()[column]] for column in columns}, {}

    monkeypatch.setattr(squad, "read_hub", read)
    assert read_split(("squad", None, "validation")) == READ


def test_no_answer_is_allowed_where_the_task_says_so(save):
    path = save(nested(BORN | {"answers": [], "is_impossible": True}))
    assert read_file(path, unanswerable=True).answers == [[]]
    with pytest.raises(FinepruneError, match=r"question 'q1': has no answers; set task.unanswerable: true"):
        read_file(path)


def test_mismatched_answers_are_skipped_and_counted_once(save, caplog):
    wrong = {"text": "Paris", "answer_start": 16}
    path = save(
        nested(
            BORN,
            BORN | {"id": "q2", "answers": [wrong]},
            BORN | {"id": "q3", "answers": [wrong, *BORN["answers"], {"text": "London", "answer_start": -1}]},
        )
    )
    with caplog.at_level(logging.WARNING, "fineprune"):
        read = read_file(path, mismatched="skip")
    assert read.ids == ["q1", "q3"]
    assert read.answers == [[Span("London", 16)]] * 2
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "q.json: 3 answers are not at their places and were skipped, and 1 questions with them"
    )
    with pytest.raises(FinepruneError, match="no question remains, since every answer is elsewhere"):
        read_file(save(nested(BORN | {"answers": [wrong]})), mismatched="skip")


def test_offsets_count_characters_not_bytes(save):
    context = "Zoë 😀 Ōsaka"
    read = read_file(
        save(nested(BORN | {"answers": [{"text": "Ōsaka", "answer_start": 6}]}, context=context))
    )
    assert read.answers == [[Span("Ōsaka", 6)]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, r"q.json, data\[0\].paragraphs\[0\].qas\[0\]: id is None, expected text"),
        ({"id": 3}, r"qas\[0\]: id is 3, expected text"),
        ({"question": "  "}, r"q.json, question 'q1': question is '  ', expected text"),
        ({"context": ""}, r"q.json, question 'q1': context is '', expected text"),
        ({"context": None}, r"question 'q1': context is None"),
        ({"context": "a \ud800"}, r"question 'q1': context holds half of a surrogate pair at character 2"),
        ({"answers": None}, r"question 'q1': answers is None; expected text and answer_start of each"),
        ({"answers": ["x"]}, r"question 'q1': answers is \['x'\]"),
        ({"answers": {"text": ["x"], "answer_start": []}}, r"answers is .*; expected .*lists of one length"),
        ({"answers": [{"text": "x"}]}, r"question 'q1': answer_start is None, expected a whole number"),
        ({"answers": [{"text": "x", "answer_start": True}]}, r"answer_start is True"),
        ({"answers": [{"text": " ", "answer_start": 3}]}, r"an answer is ' '; leave answers empty"),
        (
            {"answers": [{"text": "London", "answer_start": 15}]},
            r"question 'q1': the answer 'London' is not at 15 of the context, which has ' Londo' there",
        ),
        (
            {"answers": [{"text": "London", "answer_start": 23}]},
            r"is not at 23 of the context, which ends at 23; correct answer_start, or set task.mismatched",
        ),
        ({"answers": [{"text": "London", "answer_start": -7}]}, r"is not at -7 of the context"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(save, change, message):
    with pytest.raises(FinepruneError, match=message) as error:
        read_file(save(nested(BORN | change)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("{", r"not JSON: .*; a row a line is .jsonl"),
        ("[" * 100_000, "not JSON"),
        ('{"a": 1}\n{"a": 2}', "not JSON: Extra data"),
        ("[]", r"the file holds \[\], not an object; expected the nesting of SQuAD"),
        ('{"data": {}}', "the file has no list 'data'; expected"),
        ('{"data": [3]}', r"data\[0\] holds 3, not an object"),
        ('{"data": [{}]}', r"data\[0\] has no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', r"data\[0\].paragraphs\[0\] has no list 'qas'"),
        ('{"data": [{"paragraphs": [{"qas": ["a"]}]}]}', r".*paragraphs\[0\].qas\[0\] is 'a', not an object"),
        ('{"data": []}', "has no questions"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(write, content, message):
    with pytest.raises(FinepruneError, match=f"q.json: {message}") as error:
        read_file(write("q.json", content))
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path, write):
    with pytest.raises(FinepruneError, match="no such file"):
        read_file(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(FinepruneError, match="is a folder"):
        read_file(tmp_path / "folder.json")
    with pytest.raises(FinepruneError, match=r"named \*.tsv; known are .json"):
        read_file(write("q.tsv", "id\tquestion"))
    (tmp_path / "latin.json").write_bytes(b'{"data": "\xe9"}')
    with pytest.raises(FinepruneError, match="line 1: byte 0xe9 is not UTF-8"):
        read_file(tmp_path / "latin.json")
    with pytest.raises(FinepruneError, match=r"no column 'context'; did you mean contexts\? it has 'id', "):
        read_file(write("q.jsonl", '{"id": "a", "question": "b", "contexts": "c", "answers": []}'))


def test_an_id_that_occurs_twice(save):
    with pytest.raises(FinepruneError, match=r"question 'q1': the id occurs twice"):
        read_file(save(nested(BORN, BORN)))


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "count"), [("dev-v1.1", 5397), ("train-v1.1", 11877)])
def test_squad(realdata, name, count):
    read = read_file(realdata / "squad" / f"{name}.json")
    assert len(read) == count
    assert all(read.answers)
