"""A checkpoint folder either verifies or says in one line what is wrong with it."""

import json
import zlib
from pathlib import Path

import pytest

from fineprune import FinepruneError
from fineprune.training.host.sealing import MANIFEST, newest_whole, seal, verify

STATE = {
    "config": {"method": "movement"},
    "total_steps": 12,
    "steps_done": 4,
    "threshold": 0.25,
    "lambda": 1.5,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder of two files."""
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    (folder / "model.bin").write_bytes(bytes(range(256)) * 10)
    (folder / "empty.json").write_bytes(b"")
    seal(folder, STATE)
    return folder


def broken(folder: Path, *parts: str) -> None:
    with pytest.raises(FinepruneError) as error:
        verify(folder)
    text = str(error.value)
    assert "\n" not in text
    for part in (str(folder), *parts):
        assert part in text


def test_a_sealed_folder_gives_the_state_back(folder):
    assert verify(folder) == STATE


def test_a_dense_run_has_no_state(folder):
    (folder / MANIFEST).unlink()
    seal(folder, None)
    assert verify(folder) is None


def test_the_manifest_says_size_and_checksum_of_each_file(folder):
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert files["empty.json"] == {"size": 0, "crc32": 0}
    (folder / "check").write_bytes(b"123456789")
    seal(folder, None)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert files["check"] == {"size": 9, "crc32": 0xCBF43926}  # the check value of CRC-32


def test_files_larger_than_a_block_are_read_whole(folder):
    content = bytearray(3 * (1 << 20) + 7)
    (folder / "large").write_bytes(content)
    (folder / MANIFEST).unlink()
    seal(folder, None)
    content[-1] = 1
    (folder / "large").write_bytes(content)
    broken(folder, "large does not match its checksum")


def test_a_shorter_file(folder):
    (folder / "model.bin").write_bytes(bytes(range(256)) * 9)
    broken(folder, "broken checkpoint", "model.bin has 2,304 bytes of 2,560", "earlier one")


def test_a_longer_file(folder):
    (folder / "empty.json").write_bytes(b"x")
    broken(folder, "empty.json has 1 bytes of 0")


@pytest.mark.parametrize("at", [0, 1000, 2559])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_single_bit(folder, at, bit):
    content = bytearray((folder / "model.bin").read_bytes())
    content[at] ^= 1 << bit
    (folder / "model.bin").write_bytes(content)
    broken(folder, "model.bin does not match its checksum")


def test_a_missing_file(folder):
    (folder / "model.bin").unlink()
    broken(folder, "model.bin cannot be read")


def test_a_file_that_became_a_folder(folder):
    (folder / "model.bin").unlink()
    (folder / "model.bin").mkdir()
    broken(folder, "model.bin cannot be read")


def test_a_folder_that_was_never_sealed(folder):
    (folder / MANIFEST).unlink()
    broken(folder, "no checkpoint of a PruningTrainer")


def test_a_folder_that_is_not_there(tmp_path):
    broken(tmp_path / "none", "no checkpoint of a PruningTrainer")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '{"files": {}}', '{"pruner": null}'])
def test_a_manifest_that_is_none(folder, content):
    (folder / MANIFEST).write_text(content)
    broken(folder, "broken checkpoint", MANIFEST)


@pytest.mark.parametrize("version", [None, 1, 3])
def test_a_checkpoint_of_another_format(folder, version):
    """Without a number it is the first format, whose scores were among the weights of the model."""
    content = json.loads((folder / MANIFEST).read_text())
    del content["crc32"], content["format"]
    content |= {} if version is None else {"format": version}
    content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (folder / MANIFEST).write_text(json.dumps(content))
    broken(
        folder,
        f"format {version or 1}",
        "continues format 2",
        "Finish the run with the version that began it",
    )


@pytest.mark.parametrize(
    "files", [[], "x", {"model.bin": 3}, {"model.bin": {}}, {"model.bin": {"size": "10"}}]
)
def test_a_manifest_of_a_wrong_form(folder, files):
    (folder / MANIFEST).write_text(json.dumps({"pruner": None, "files": files}))
    broken(folder, "broken checkpoint")


def test_a_single_bit_anywhere_in_the_manifest(folder):
    content = (folder / MANIFEST).read_bytes()
    unnoticed = []
    for at in range(len(content)):
        for bit in (0, 3):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            (folder / MANIFEST).write_bytes(damaged)
            try:
                found = verify(folder)
            except FinepruneError:
                continue
            if found != STATE:
                unnoticed.append(bytes(damaged[max(0, at - 12) : at + 12]))
    assert not unnoticed, f"{len(unnoticed)}, such as {unnoticed[0]!r}"


# -- the newest -------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Sealed checkpoints 4, 8 and 12; by name 12 is the first."""
    for step in (4, 8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "file").write_text(str(step))
        seal(folder, {"steps_done": step})
    return tmp_path


def test_the_newest_is_by_number(run):
    assert newest_whole(run) == (run / "checkpoint-12", [])


def test_broken_ones_are_passed_over_and_told(run):
    (run / "checkpoint-12" / "file").write_text("x")
    (run / "checkpoint-8" / MANIFEST).unlink()
    newest, complaints = newest_whole(run)
    assert newest == run / "checkpoint-4"
    assert [str(run / "checkpoint-12") in complaints[0], str(run / "checkpoint-8") in complaints[1]] == [
        True
    ] * 2
    assert len(complaints) == 2


def test_older_broken_ones_are_no_matter(run):
    (run / "checkpoint-4" / "file").unlink()
    assert newest_whole(run) == (run / "checkpoint-12", [])


def test_all_broken(run):
    for step in (4, 8, 12):
        (run / f"checkpoint-{step}" / "file").unlink()
    newest, complaints = newest_whole(run)
    assert newest is None
    assert len(complaints) == 3


def test_other_names_are_not_looked_at(run):
    for name in ("checkpoint-", "checkpoint-old", "checkpoint-99.tmp", "step-99", ".writing"):
        (run / name).mkdir()
    assert newest_whole(run) == (run / "checkpoint-12", [])


@pytest.mark.parametrize("name", ["", "none"])
def test_no_checkpoints(tmp_path, name):
    assert newest_whole(tmp_path / name) == (None, [])
