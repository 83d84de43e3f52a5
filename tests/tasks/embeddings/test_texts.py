"""Texts without labels from files: what counts as a text, and what is refused."""

import json

import pytest
from runtime.models import make_tokenizer

from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.embeddings.task import EmbeddingConfig
from fineprune.tasks.embeddings.texts import Texts, read_pairs, read_retrieval, read_texts


def paragraph(name: str, context: str, question: str) -> dict:
    answer = {"text": context[-4:-1], "answer_start": len(context) - 4}
    return {"context": context, "qas": [{"id": name, "question": question, "answers": [answer]}]}


PARAGRAPHS = [paragraph("1", "Rome is old.", "Is it old?"), paragraph("2", "Paris is big.", "Is it big?")]
SQUAD = {"data": [{"paragraphs": PARAGRAPHS}]}


def test_blank_and_repeated_lines_are_counted_and_dropped(write):
    assert read_texts(write("a.txt", "one\n\n two \none\n  \ntwo\n"), ("text",)) == Texts(
        ["one", "two"], 2, 2
    )


def test_columns_of_a_table_and_squad_are_texts(write):
    table = write("a.tsv", "first\tsecond\na\tb\nc\ta\n")
    assert read_texts(table, ("first", "second")).texts == ["a", "b", "c"]
    squad = write("s.json", json.dumps(SQUAD))
    assert read_texts(squad, ("text",)).texts == ["Rome is old.", "Is it old?", "Paris is big.", "Is it big?"]


def test_cells_that_are_no_text_and_other_files_are_refused(write):
    with pytest.raises(FinepruneError, match=r"a\.jsonl, row 2: column 'text' holds 3, which is not text"):
        read_texts(write("a.jsonl", '{"text": "a"}\n{"text": 3}\n'), ("text",))
    with pytest.raises(FinepruneError, match=r"cannot read texts from a file named \*\.md; known are \.txt"):
        read_texts(write("a.md", "text\n"), ("text",))


def test_pairs_have_scores(write):
    head = "sentence1\tsentence2\tscore\n"
    assert read_pairs(write("a.tsv", f"{head}a\tb\t1.5\nc\td\t0\n")).scores == [1.5, 0.0]
    with pytest.raises(FinepruneError, match=r"b\.tsv, row 1: score is 'x', expected a number"):
        read_pairs(write("b.tsv", f"{head}a\tb\tx\n"))
    with pytest.raises(FinepruneError, match=r"d\.tsv, row 2: score is 'nan', expected a finite number"):
        read_pairs(write("d.tsv", f"{head}a\tb\t1\nc\td\tnan\n"))
    with pytest.raises(FinepruneError, match="all scores are 2; a correlation needs different ones"):
        read_pairs(write("c.tsv", f"{head}a\tb\t2\nc\td\t2\n"))


def test_a_search_has_a_right_text_for_each_query(write):
    found = read_retrieval(write("s.json", json.dumps(SQUAD)))
    assert (found.queries, found.right) == (["Is it old?", "Is it big?"], [[0], [1]])
    assert read_retrieval(write("r.tsv", "query\ttext\nq\ta\nr\tb\ns\ta\n")).right == [[0], [1], [0]]
    several = read_retrieval(write("several.tsv", "query\ttext\nq\tb\nr\tb\nq\ta\n q\tb \n"))
    assert several == (["q", "r"], ["b", "a"], [[0, 1], [0]])
    with pytest.raises(FinepruneError, match="has one text only, so any model finds it"):
        read_retrieval(write("one.tsv", "query\ttext\nq\ta\n"))


def test_a_question_without_an_answer_is_not_searched_for_but_its_paragraph_may_be_found(write):
    nothing = {"context": "No.", "qas": [{"id": "3", "question": "Is it?", "answers": []}]}
    place = write("v2.json", json.dumps({"data": [{"paragraphs": [*PARAGRAPHS, nothing]}]}))
    with pytest.warns(FinepruneWarning, match=r"v2\.json: 1 of 3 questions have no answer and are dropped"):
        found = read_retrieval(place)
    assert found == (["Is it old?", "Is it big?"], ["Rome is old.", "Paris is big.", "No."], [[0], [1]])


def test_paragraphs_without_a_question_are_texts_and_may_be_found(write):
    alone, blank = {"context": "Oslo is cold.", "qas": []}, {"context": " ", "qas": []}
    place = write("s.json", json.dumps({"data": [{"paragraphs": [alone, blank, *PARAGRAPHS]}]}))
    assert read_texts(place, ()).texts[:2] == ["Oslo is cold.", "Rome is old."]
    found = read_retrieval(place)
    assert found.right == [[0], [1]]
    assert found.texts == ["Rome is old.", "Paris is big.", "Oslo is cold."]
    wrong = write("w.json", json.dumps({"data": [{"paragraphs": [{"context": 3, "qas": []}, *PARAGRAPHS]}]}))
    with pytest.raises(FinepruneError, match=r"data\[0\].paragraphs\[0\]: context is 3, expected text"):
        read_texts(wrong, ())


def test_texts_that_are_scored_and_cut_are_counted(write):
    lines = "".join(f"{'a ' * 9}{number}\n" if number > 97 else f"text {number}\n" for number in range(100))
    pairs = write("a.tsv", f"sentence1\tsentence2\tscore\n{'a ' * 9}\tb\t1\nc\td\t0\n")
    search = write("r.tsv", f"query\ttext\nq\t{'a ' * 9}\nr\tb\n")
    with pytest.warns(FinepruneWarning, match="give thousands"):
        data = EmbeddingConfig(train=write("t.txt", lines), sts=pairs, retrieval=search).load()
    with pytest.warns(FinepruneWarning) as said:
        data.evaluation(make_tokenizer("bert"), 8)
    assert [str(one.message) for one in said] == [
        f"{counts} have more than 8 tokens, and are cut there; training.max_length sets it"
        for counts in (
            "1 of 4 texts of task.sts",
            "1 of 4 texts of task.retrieval",
            "2 of 5 texts of the validation data",
        )
    ]


def test_texts_to_score_on_have_no_white_space_and_blank_rows_are_counted(write):
    table = write("a.tsv", "sentence1\tsentence2\tscore\n a\tb \t1\n \tc\t3\nd\te\t2\n")
    with pytest.warns(FinepruneWarning, match=r"a\.tsv: 1 of 3 rows have a blank text and are dropped"):
        assert read_pairs(table) == (["a", "d"], ["b", "e"], [1.0, 2.0])
    table = write("r.tsv", "query\ttext\n q\ta \nr\t \n\tb\ns\tc\n")
    with pytest.warns(FinepruneWarning, match=r"r\.tsv: 2 of 4 rows have a blank text"):
        assert read_retrieval(table) == (["q", "s"], ["a", "c"], [[0], [1]])
    blank = write("b.tsv", "sentence1\tsentence2\tscore\n \tb\t1\n")
    with (
        pytest.warns(FinepruneWarning, match="1 of 1 rows"),
        pytest.raises(FinepruneError, match=r"b\.tsv: every row has a blank text"),
    ):
        read_pairs(blank)


def test_the_last_texts_are_held_out(write):
    place = write("t.txt", "".join(f"text {number}\n" for number in range(100)))
    with pytest.warns(FinepruneWarning, match="has 95 different texts to learn from; give thousands"):
        data = EmbeddingConfig(train=place).load()
    assert data.validation == [f"text {number}" for number in range(95, 100)]
    assert data.sizes() == {"train": 95, "validation": 5}


def test_texts_to_score_on_are_not_learned_from(write):
    train = write("t.txt", "".join(f"text {number}\n" for number in range(10)))
    validation = write("v.txt", "".join(f"text {number}\n" for number in range(6, 12)))
    with pytest.warns(FinepruneWarning, match="has 6 different texts"):
        data = EmbeddingConfig(train=train, validation=validation).load()
    assert (data.train.texts[-1], data.train.repeated, len(data.validation)) == ("text 5", 4, 6)
    many = write("many.txt", "".join(f"text {number}\n" for number in range(2500)))
    held_out = EmbeddingConfig(validation=many).load(need_train=False).validation
    assert (len(held_out), held_out[0], held_out[-1]) == (1000, "text 0", "text 2497")


def test_files_that_are_not_there_are_found_before_a_run(write):
    config = EmbeddingConfig(train="nothere.txt", validation=write("v.txt", "a\nb\nc\nd\n"))
    with pytest.raises(FinepruneError, match="nothere"):
        config.check_files()


def test_one_text_is_refused(write):
    with pytest.raises(FinepruneError, match=r"one\.txt: 1 different text; at least 8 are needed"):
        EmbeddingConfig(train=write("one.txt", "text\ntext\n")).load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "mrr"}, r"task\.metric='mrr'"),
        ({"text": ()}, r"text is \(\), expected the name of a column, or a list"),
        ({"sts": 3}, "sts is 3, expected text"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(FinepruneError, match=message):
        EmbeddingConfig(train="a.txt", **settings)
