"""Text files: where they are, and what is wrong with one."""

import gzip
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fineprune import FinepruneError
from fineprune._text_files import check_unicode, find_file, read_lines, read_text


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


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"one\ntwo\tthree", ["one", "two\tthree"]),
        (b"\xef\xbb\xbfone\r\n two\r\n", ["one", " two"]),
        (b"one\r\ntwo\nthree\r\n", ["one", "two", "three"]),
        (b"one\rtwo\r", ["one", "two"]),  # an old Mac's
        (b"one\rstill one\ntwo\n", ["one\rstill one", "two"]),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n".encode(), ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"]),
        (b"\none\n \ntwo\n\n\t\n", ["", "one", " ", "two"]),
        (b"no\0b\n", ["no\0b"]),
    ],
)
def test_lines_are_as_they_were_written(tmp_path, raw, lines):
    (tmp_path / "a.txt").write_bytes(raw)
    assert read_lines(tmp_path / "a.txt") == lines


def test_a_file_of_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(FinepruneError, match=r"a\.txt: no text in it; one a line is expected"):
        read_lines(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("text\n".encode("utf-16"), r"a\.txt: is UTF-16 text; save it as UTF-8"),
        (b"\xfe\xff" + "text\n".encode("utf-16-be"), "is UTF-16 text"),
        ("text\n".encode("utf-16-le"), "perhaps it is UTF-16, save it as UTF-8"),
        ("text\n".encode("utf-16-be"), "perhaps it is UTF-16, save it as UTF-8"),
        (gzip.compress(b"text\n", mtime=0), "is compressed by gzip; unpack it first"),
        (b"PK\x03\x04...", "is a ZIP archive or an Excel workbook"),
    ],
)
def test_other_forms_are_named(tmp_path, raw, message):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(FinepruneError, match=message):
        read_text(tmp_path / "a.txt")


def test_a_pipe_and_a_device_are_no_data_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.tsv")
    for path in (tmp_path / "pipe.tsv", Path("/dev/zero")):
        with pytest.raises(FinepruneError, match=f"{path}: is not a regular file"):
            find_file(path)


def test_half_of_a_surrogate_pair():
    check_unicode("caf\xe9 \U0001f600", "here")
    with pytest.raises(FinepruneError, match=r"^here holds half of a surrogate pair at character 2;"):
        check_unicode("a \ud83d", "here")


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    assert read_lines("-") == ["one", "two"]
