"""Windows are made once for the same questions and tokenizer; whatever becomes of the file, a run goes on."""

import logging
import shutil
from dataclasses import replace

import datasets
import pytest
from transformers import BertTokenizer

from fineprune.tasks.questions import window_cache
from fineprune.tasks.questions.context_windows import make_windows
from fineprune.tasks.questions.squad import Questions, Span
from fineprune.tasks.questions.window_cache import cached_windows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(window_cache, "_WORTH", 3)
    return tmp_path / "cache" / "fineprune"


@pytest.fixture
def read():
    contexts = ["a b very film bad", "bad a", "film"]
    answers = [[Span("b very film", 2)], [Span("a", 4)], []]
    return Questions(list("123"), ["good", "good " * 9, "b"], contexts, answers)


@pytest.fixture
def made(monkeypatch):
    """The calls that made windows."""
    calls = []

    def make(*arguments):
        calls.append(arguments)
        return make_windows(*arguments)

    monkeypatch.setattr(window_cache, "make_windows", make)
    return calls


def same(one, other):
    assert one.table.equals(other.table)
    assert (one.cut, one.lost) == (other.cut, other.lost) == (1, 1)
    assert one.rows()[:] == other.rows()[:]
    for name in ("starts", "ends"):
        assert one.tokens(name).tolist() == other.tokens(name).tolist()
    assert one.lengths().tolist() == other.lengths().tolist()


def test_the_second_time_they_are_read(read, tokenizer, folder, made, caplog):
    plain = make_windows(read, tokenizer, 7, 1)  # "b very film" lies across two windows
    same(cached_windows(read, tokenizer, 7, 1), plain)
    (file,) = folder.iterdir()
    tokenizer(["good"] * 2, padding=True, truncation=True, max_length=2)  # it keeps these settings
    with caplog.at_level(logging.WARNING, "fineprune"):
        same(cached_windows(replace(read, ids=list("abc")), tokenizer, 7, 1), plain)
    assert len(made) == 1
    assert list(folder.iterdir()) == [file]
    assert "1 questions are longer than 2 tokens" in caplog.text
    assert "1 answers are in no window whole" in caplog.text


def test_other_questions_lengths_or_tokenizers_are_other_windows(read, tokenizer, folder, made):
    cached_windows(read, tokenizer, 7, 1)
    cached_windows(read, tokenizer, 8, 1)
    cached_windows(read, tokenizer, 7, 0)
    cached_windows(replace(read, answers=[[], [], []]), tokenizer, 7, 1)
    cached_windows(replace(read, contexts=["a b very film bad", "bad a", "a"]), tokenizer, 7, 1)
    cached_windows(replace(read, questions=["good", "good", "b"]), tokenizer, 7, 1)
    words = tokenizer.get_vocab()
    cached_windows(read, BertTokenizer(vocab=words | {"a": words["b"], "b": words["a"]}), 7, 1)
    cached_windows(read, BertTokenizer(vocab=words, padding_side="left"), 7, 1)
    cached_windows(read, BertTokenizer(vocab=words, truncation_side="left"), 7, 1)
    assert len(made) == len(list(folder.iterdir())) == 9


def test_few_are_not_kept(read, tokenizer, folder, made, monkeypatch):
    monkeypatch.setattr(window_cache, "_WORTH", 4)
    cached_windows(read, tokenizer, 7, 1)
    assert not folder.exists()


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_file_is_made_anew(read, tokenizer, folder, made, caplog, size):
    plain = cached_windows(read, tokenizer, 7, 1)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    with caplog.at_level(logging.WARNING, "fineprune"):
        same(cached_windows(read, tokenizer, 7, 1), plain)
    assert "cannot be read" in caplog.text
    assert len(made) == 2
    assert file.read_bytes() == whole


def test_another_arrow_file_in_its_place(read, tokenizer, folder, made):
    import pyarrow

    cached_windows(read, tokenizer, 7, 1)
    (file,) = folder.iterdir()
    table = pyarrow.table({"a": [1]})
    with pyarrow.ipc.new_file(str(file), table.schema) as written:
        written.write_table(table)
    assert len(cached_windows(read, tokenizer, 7, 1)) == len(make_windows(read, tokenizer, 7, 1))
    assert len(made) == 2


def test_where_nothing_can_be_written_the_run_goes_on(read, tokenizer, folder, made, caplog):
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "fineprune"):
        same(cached_windows(read, tokenizer, 7, 1), make_windows(read, tokenizer, 7, 1))
    assert "the windows cannot be kept" in caplog.text


def test_windows_outlive_their_file(read, tokenizer, folder):
    cached_windows(read, tokenizer, 7, 1)
    windows = cached_windows(read, tokenizer, 7, 1)
    shutil.rmtree(folder)
    same(windows, make_windows(read, tokenizer, 7, 1))
