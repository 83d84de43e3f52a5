import os

import pytest

from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import check_regular, read_json


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
