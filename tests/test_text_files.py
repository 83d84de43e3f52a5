"""Text files: where they are, and what is wrong with one."""

import io
from types import SimpleNamespace

import pytest

from fineprune import FinepruneError
from fineprune._text_files import find_file, read_lines, read_text


def test_a_file_is_found(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("")
    assert find_file(str(tmp_path / "a.txt")) == tmp_path / "a.txt"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_file("~/a.txt") == tmp_path / "a.txt"
    with pytest.raises(FinepruneError, match=r"b\.txt: no such file \(looked in "):
        find_file(tmp_path / "b.txt")
    with pytest.raises(FinepruneError, match="is a folder; name a file in it"):
        find_file(tmp_path)


def test_text_is_utf8_without_its_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    assert read_text(tmp_path / "a.txt") == "café\r\n"


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(
        FinepruneError, match=r"a\.txt, line 3: byte 0xe9 is not UTF-8 text; save the file as UTF-8$"
    ):
        read_text(tmp_path / "a.txt")


def test_what_cannot_be_read_is_one_line(tmp_path):
    for place, why in ((tmp_path, "Is a directory"), (tmp_path / "nothing", "No such file or directory")):
        with pytest.raises(FinepruneError) as error:
            read_text(place)
        assert str(error.value) == f"{place}: cannot be read: {why}"


def test_lines_that_are_not_blank(tmp_path):
    (tmp_path / "a.txt").write_text("\n one\n\t\ntwo\tthree")
    assert read_lines(tmp_path / "a.txt") == [" one", "two\tthree"]
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(FinepruneError, match=r"a\.txt: no text in it; one a line is expected"):
        read_lines(tmp_path / "a.txt")


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    assert read_lines("-") == ["one", "two"]
