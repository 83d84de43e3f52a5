import os

import pytest

from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import check_plain, check_regular, parse_json, read_json


def test_json_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}
    assert check_regular(tmp_path / "a.json", limit=16) == 16


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b""],
    ids=["cut", "no UTF-8", "deep", "a number too long", "empty"],
)
def test_what_is_not_json_is_an_engine_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(EngineError, match=r"a\.json: cannot be read, it is damaged"):
        read_json(tmp_path / "a.json")


def test_a_name_that_no_file_can_have(tmp_path):
    for read in (check_regular, read_json):
        with pytest.raises(EngineError, match=r"b': cannot be read \(embedded null byte\)"):
            read(tmp_path / "a\0b")


def test_pipes_devices_and_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(EngineError, match="not a regular file"):
            read_json(path)


def test_size_is_compared_before_reading(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + b" " * 100 + b"]")
    with pytest.raises(EngineError, match="holds 102 bytes, the most that is read is 101"):
        read_json(tmp_path / "a.json", limit=101)


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def bomb():
    value = ["x"] * 9
    for _ in range(11):
        value = [value] * 9
    return value


def in_itself():
    value = {}
    value["a"] = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nested(101), "nested more than 100 levels deep"),
        (in_itself(), "nested more than 100 levels deep"),
        (bomb(), "holds more than 10,000,000 values, with aliases"),
        ({"a": [10**400]}, "a whole number of 1329 bits"),
        ({-(1 << 40_000): 1}, "a whole number of 40001 bits"),  # too long to print
    ],
    ids=["deep", "cycle", "bomb", "large", "largest"],
)
def test_values_that_nothing_can_be_done_with(value, message):
    with pytest.raises(EngineError, match=message):
        check_plain(value, "a.yaml")


def test_values_that_are_plain():
    shared = {"b": [1.5, None, True, "x", 10**300]}
    check_plain({"a": [shared, shared, nested(90)]}, "a.yaml")
    check_plain([1, 2, 3], "a.yaml", limit=4)
    with pytest.raises(EngineError, match="more than 3 values"):
        check_plain([1, 2, 3], "a.yaml", limit=3)


def test_json_texts():
    assert parse_json('{"a": 1}', "line 3") == {"a": 1}
    for text in ("{", "[" * 100_000, "1" + "0" * 400):
        with pytest.raises(EngineError, match="line 3: "):
            parse_json(text, "line 3")
