"""A reader finds the old files or the new ones, whenever the writer was stopped."""

import errno
import os
import subprocess
import sys
import time

import pytest

from fineprune import _files
from fineprune._files import replace_folder, staged, write_json, write_text

CAN_EXCHANGE = sys.platform == "linux"


def folder(path, text):
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "content").write_text(text)
    return path


def content(path):
    return (path / "sub" / "content").read_text()


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture(params=["exchange", "two steps"])
def way(request, monkeypatch):
    """Both ways to replace a folder."""
    if request.param == "two steps":
        monkeypatch.setattr(_files, "_exchange", lambda one, other: False)
    elif not CAN_EXCHANGE:
        pytest.skip("renameat2 is Linux's")
    return request.param


def test_text_and_json(tmp_path):
    write_text(tmp_path / "a", "ä\n")
    write_json(tmp_path / "b", {"x": [1, None]})
    assert (tmp_path / "a").read_text(encoding="utf-8") == "ä\n"
    assert (tmp_path / "b").read_text() == '{\n  "x": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b", float("nan"))
    assert (tmp_path / "b").read_text().startswith("{")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("there", [False, True])
def test_a_staged_folder_takes_its_place(way, there, tmp_path):
    if there:
        folder(tmp_path / "place", "old")
    folder(tmp_path / ".place.writing", "of a writer that was killed")
    with staged(tmp_path / "place") as staging:
        assert not staging.exists()
        assert staging.parent == tmp_path
        folder(staging, "new")
        assert (tmp_path / "place").exists() == there
    assert content(tmp_path / "place") == "new"
    assert names(tmp_path) == ["place"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_staged_folder_that_fails(error, there, tmp_path):
    if there:
        folder(tmp_path / "place", "old")

    def write():
        with staged(tmp_path / "place") as staging:
            folder(staging, "half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == (["place"] if there else [])
    assert not there or content(tmp_path / "place") == "old"


def test_a_link_is_staged_beside_where_it_leads(tmp_path):
    folder(tmp_path / "disk" / "place", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "place")
    with staged(tmp_path / "link") as staging:
        assert staging.parent == tmp_path / "disk"
        folder(staging, "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "disk" / "place") == "new"
    assert names(tmp_path / "disk") == ["place"]


def test_a_place_that_is_free(way, tmp_path):
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "place")
    assert content(tmp_path / "place") == "new"
    assert names(tmp_path) == ["place"]


def test_a_place_that_is_taken(way, tmp_path):
    folder(tmp_path / "place", "old")
    (tmp_path / "place" / "gone").touch()
    folder(tmp_path / ".place.old", "what a kill left")
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "place")
    assert content(tmp_path / "place") == "new"
    assert names(tmp_path) == ["place"]
    assert names(tmp_path / "place") == ["sub"]


def test_a_link_stays_one(way, tmp_path):
    folder(tmp_path / "real", "old")
    (tmp_path / "place").symlink_to(tmp_path / "real")
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "place")
    assert (tmp_path / "place").is_symlink()
    assert content(tmp_path / "real") == "new"
    assert names(tmp_path) == ["place", "real"]


def test_relative_paths(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "place", "old")
    replace_folder(folder(tmp_path / "new", "new").relative_to(tmp_path), tmp_path.__class__("place"))
    assert content(tmp_path / "place") == "new"


@pytest.mark.skipif(not CAN_EXCHANGE, reason="renameat2 is Linux's")
def test_exchange(tmp_path):
    one, other = folder(tmp_path / "one ä", "1"), folder(tmp_path / "other", "2")
    assert _files._exchange(one, other)
    assert (content(one), content(other)) == ("2", "1")
    with pytest.raises(FileNotFoundError) as caught:
        _files._exchange(one, tmp_path / "missing")
    assert caught.value.filename2 == str(tmp_path / "missing")
    assert content(one) == "2"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, None])
def test_where_folders_cannot_be_exchanged(code, tmp_path, monkeypatch):
    """No such call in the kernel or the file system, or (None) in the C library."""

    class Library:
        def __init__(self, *_, **__):
            if code is not None:
                self.renameat2 = lambda *_: -1

    monkeypatch.setattr(_files.ctypes, "CDLL", Library)
    monkeypatch.setattr(_files.ctypes, "get_errno", lambda: code)
    folder(tmp_path / "place", "old")
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "place")
    assert content(tmp_path / "place") == "new"
    assert names(tmp_path) == ["place"]


def test_a_stop_between_the_two_steps_keeps_the_old_folder(tmp_path, monkeypatch):
    real, calls = os.replace, []
    monkeypatch.setattr(_files, "_exchange", lambda one, other: False)

    def replace(one, other):
        calls.append(other)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(one, other)

    monkeypatch.setattr(_files.os, "replace", replace)
    folder(tmp_path / "place", "old")
    new = folder(tmp_path / "new", "new")
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, tmp_path / "place")
    assert content(tmp_path / ".place.old") == "old"
    assert content(new) == "new"


@pytest.mark.skipif(not CAN_EXCHANGE, reason="renameat2 is Linux's")
def test_a_kill_leaves_a_whole_folder(tmp_path):
    """A process that replaces without end is killed at ten moments; a reader never finds less."""
    place = tmp_path / "place"
    code = (
        "import sys, shutil, itertools; from pathlib import Path\n"
        "from fineprune._files import replace_folder\n"
        "place = Path(sys.argv[1])\n"
        "for turn in itertools.count():\n"
        "    new = place.with_name('.new'); shutil.rmtree(new, ignore_errors=True); new.mkdir()\n"
        "    for part in range(4): (new / str(part)).write_text(f'{sys.argv[2]} {turn}')\n"
        "    replace_folder(new, place)\n"
    )
    for run in range(10):
        process = subprocess.Popen([sys.executable, "-c", code, str(place), str(run)])
        deadline = time.monotonic() + 30
        while not (place / "3").is_file() or not (place / "3").read_text().startswith(f"{run} "):
            assert process.poll() is None
            assert time.monotonic() < deadline
        for _ in range(50):
            assert place.is_dir()
        time.sleep(0.003 * run)
        process.kill()
        process.wait()
        assert names(place) == ["0", "1", "2", "3"]
        assert len({path.read_text() for path in place.iterdir()}) == 1
