"""A reader finds the old files or the new ones, whenever the writer was stopped."""

import ctypes
import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors import SafetensorError

from fineprune import FinepruneError
from fineprune._files import (
    WriteError,
    replace_folder,
    staged,
    staged_file,
    staged_files,
    write_json,
    write_text,
)

CAN_EXCHANGE = sys.platform == "linux"


def folder(path, text):
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "content").write_text(text)
    return path


def content(path):
    return (path / "sub" / "content").read_text()


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def cannot_exchange(monkeypatch):
    """A C library without renameat2, as on other systems than Linux."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())


@pytest.fixture(params=["exchange", "two steps"])
def way(request):
    """Both ways to replace a folder."""
    if request.param == "two steps":
        request.getfixturevalue("cannot_exchange")
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
    folder(tmp_path / ".place.0123abcd.writing", "of a writer that was killed")
    with staged(tmp_path / "place") as staging:
        assert not staging.exists()
        assert staging.parent.parent == tmp_path
        assert not (tmp_path / ".place.0123abcd.writing").exists()
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
        assert staging.parent.parent == tmp_path / "disk"
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
    folder(tmp_path / ".place.0123abcd.old", "what a kill left")
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
def test_the_exchange_is_one_step(tmp_path, monkeypatch):
    """No path is renamed, so no moment has neither folder."""
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("two steps"))
    place = folder(tmp_path / "place ä", "old")
    replace_folder(folder(tmp_path / "new", "new"), place)
    assert content(place) == "new"
    assert names(tmp_path) == ["place ä"]


def test_a_missing_folder_replaces_nothing(way, tmp_path):
    place = folder(tmp_path / "place", "old")
    with pytest.raises(FileNotFoundError) as caught:
        replace_folder(tmp_path / "missing", place)
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "missing"), str(place))
    if way == "exchange":
        assert content(place) == "old"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_where_folders_cannot_be_exchanged(code, tmp_path, monkeypatch):
    """The C library has the call, the file system or the kernel has not."""

    class Library:
        def __init__(self, *_, **__):
            self.renameat2 = lambda *_: -1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    folder(tmp_path / "place", "old")
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "place")
    assert content(tmp_path / "place") == "new"
    assert names(tmp_path) == ["place"]


def test_a_stop_between_the_two_steps_keeps_the_old_folder(cannot_exchange, tmp_path, monkeypatch):
    real, calls = os.replace, []

    def replace(one, other):
        calls.append(other)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(one, other)

    monkeypatch.setattr(os, "replace", replace)
    folder(tmp_path / "place", "old")
    new = folder(tmp_path / "new", "new")
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, tmp_path / "place")
    assert [content(old) for old in tmp_path.glob(".place.*.old")] == ["old"]
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


# -- several writers, and writes that the system refuses ---------------------------------------------------

PUBLISH = """
import sys
from pathlib import Path
from fineprune._files import staged
for turn in range(40):
    with staged(Path(sys.argv[1])) as staging:
        staging.mkdir()
        for part in range(4):
            (staging / str(part)).write_text(f"{sys.argv[2]} {turn}")
"""


def test_writers_of_one_folder_publish_no_mixture(tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(tmp_path / "place"), str(name)], stderr=subprocess.PIPE
        )
        for name in range(3)
    ]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 3
    assert [writer.returncode for writer in writers] == [0] * 3
    assert names(tmp_path) == ["place"]
    assert names(tmp_path / "place") == ["0", "1", "2", "3"]
    (last,) = {path.read_text() for path in (tmp_path / "place").iterdir()}
    assert last.endswith(" 39")


def test_a_writer_leaves_the_place_of_another_alone(tmp_path):
    with staged(tmp_path / "place") as slow:
        folder(slow, "slow")
        with staged(tmp_path / "place") as fast:
            folder(fast, "fast")
        assert content(tmp_path / "place") == "fast"
    assert content(tmp_path / "place") == "slow"
    assert names(tmp_path) == ["place"]


def test_files_of_a_folder_are_published_together(tmp_path):
    place = tmp_path / "place"
    with staged_files(place):
        pass
    assert names(tmp_path) == []
    with staged_files(place) as staging:
        (staging / "a").write_text("first")
        assert not place.exists()
    (place / "other").write_text("kept")
    for error in (ZeroDivisionError(), WriteError(place, "full")):
        with pytest.raises(type(error)), staged_files(place) as staging:
            raise error
    assert (place / "a").read_text() == "first"
    with staged_files(place) as staging:
        (staging / "a").write_text("third")
    assert ((place / "a").read_text(), (place / "other").read_text()) == ("third", "kept")
    with (
        pytest.raises(WriteError, match=r"other: cannot be written"),
        staged_files(place / "other") as staging,
    ):
        (staging / "a").touch()
    assert (names(tmp_path), names(place)) == (["place"], ["a", "other"])


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_rights_follow_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        with staged(tmp_path / "place") as staging:
            folder(staging, "new")
            (staging / "sub" / "content").chmod(0o600)  # as safetensors leaves what it writes
        with staged_file(tmp_path / "file") as beside:
            beside.unlink()
            beside.touch(0o600)
        write_text(tmp_path / "text", "")
    finally:
        os.umask(before)
    for path in (tmp_path / "place" / "sub" / "content", tmp_path / "file", tmp_path / "text"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "place").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (
            SafetensorError("Error while serializing: I/O error: Os { code: 28, kind: StorageFull }"),
            "No space left on device",
        ),
        (Exception("No space left on device (os error 28)"), "No space left on device"),  # of tokenizers
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
            "inline_container",
        ),
        (OSError("problem writing element 3072 to file"), "problem writing element"),  # of numpy
        (OSError("3072 requested and 100 written"), "3072 requested and 100 written"),
    ],
)
def test_a_refused_write_is_one_line_and_leaves_nothing(error, reason, tmp_path):
    (tmp_path / "file").write_text("old")

    def to_file():
        with staged_file(tmp_path / "file"):
            raise error

    def to_folder():
        with staged(tmp_path / "place") as staging:
            folder(staging, "half")
            raise error

    for write, place in ((to_file, "file"), (to_folder, "place")):
        with pytest.raises(WriteError) as caught:
            write()
        text = str(caught.value)
        assert text.startswith(f"{tmp_path / place}: cannot be written (")
        assert reason in text
        assert " MB are free" in text
        assert "\n" not in text
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    "error", [KeyError("a"), FileNotFoundError(errno.ENOENT, "No such file", "other"), RuntimeError("size")]
)
def test_other_errors_stay_what_they_are(error, tmp_path):
    with pytest.raises(type(error)), staged(tmp_path / "place"):
        raise error
    with pytest.raises(type(error)), staged_file(tmp_path / "file"):
        raise error
    assert names(tmp_path) == []


def test_a_read_only_file_system_is_one_line(tmp_path, monkeypatch):
    refuse = Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    for name in ("touch", "unlink", "mkdir"):  # unlink: of the temporary file, which was never made
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(WriteError, match=r"a: cannot be written .Read-only file system.; make room"):
        write_text(tmp_path / "a", "text")


def test_temporary_files_of_dead_writers_go_after_an_hour(tmp_path):
    old, new = tmp_path / ".a.0123abcd.tmp", tmp_path / ".a.4567abcd.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 3700,) * 2)
    write_text(tmp_path / "a", "text")
    assert names(tmp_path) == [new.name, "a"]


@pytest.mark.parametrize("stage", [staged, staged_file])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{folder}/source.bin", "{folder}/source.bin: cannot be read (Permission denied)"),
        ("/elsewhere/source.bin", "/elsewhere/source.bin: cannot be read (Permission denied)"),
        ("{staging}", "{folder}/out: cannot be written (Permission denied); make room there"),
        ("{folder}/out", "{folder}/out: cannot be written (Permission denied)"),
        ("{folder}", "{folder}/out: cannot be written (Permission denied)"),
        (None, "{folder}/out: cannot be written (Permission denied)"),
    ],
)
def test_a_file_that_may_not_be_read_is_named(stage, name, said, tmp_path):
    """Root may read everything, so the error is made here."""

    def write():
        with stage(tmp_path / "out") as staging:
            path = name and name.format(folder=tmp_path, staging=staging)
            raise PermissionError(errno.EACCES, "Permission denied", path)

    with pytest.raises(FinepruneError) as error:
        write()
    assert str(error.value).startswith(said.format(folder=tmp_path))
    assert list(tmp_path.iterdir()) == []
