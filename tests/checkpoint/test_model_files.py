"""The small files of a model folder are checked before anything opens them."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from support import tiny_bert

import fineprune
from fineprune import FinepruneError, load
from fineprune.checkpoint.loading import open_model
from fineprune.checkpoint.model_files import check_files, checksums, explained
from fineprune_runtime import manifest


@pytest.fixture
def small(make_pruned, tokenizer, tmp_path):
    return fineprune.save_compact(make_pruned(), tmp_path / "small", tokenizer).folder


def listed(folder):
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return json.loads(file.metadata()["fineprune"])["files"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_opened(name, kind, tmp_path):
    """Reading one would not end."""
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    for opened in (check_files, load):
        with pytest.raises(FinepruneError, match=f"{name}: is not a regular file"):
            opened(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "nothing"])
def test_what_else_may_lie_there(kind, tmp_path):
    place = tmp_path / "model" / "notes"
    place.parent.mkdir()
    if kind == "file":
        place.write_text("x")
    elif kind == "folder":
        place.mkdir()
    elif kind == "link":
        place.symlink_to(tmp_path / "gone")
    check_files(place.parent)
    check_files(tmp_path / "no-such-folder")


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../x.safetensors"}},
        {"weight_map": {"a": "/x.safetensors"}},
        {"weight_map": {"a": {"x": 1}}},
        {"weight_map": {"a": ["x"]}},
        {"weight_map": {"a": "\ud800"}},
        {"weight_map": {"a": "x\x00"}},
        {"weight_map": {"a": 5}},
        {"weight_map": {}},
        {"weight_map": ["x"]},
        {},
        [],
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_names_no_files_of_the_folder(index, name, tmp_path):
    (tmp_path / name).write_text(json.dumps(index))
    with pytest.raises(FinepruneError, match=f"{name}: weight_map does not name files of the folder"):
        load(tmp_path)


def test_shards_are_opened(tmp_path):
    model = tiny_bert().eval()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert load(tmp_path).num_parameters() == model.num_parameters()


def test_the_manifest_lists_the_files_beside_the_weights(small, make_pruned, base, tokenizer, tmp_path):
    assert set(listed(small)) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert listed(small) == checksums(small)
    parts = fineprune.save_compact(make_pruned(), tmp_path / "parts", tokenizer, max_shard_size="10KB").folder
    files = sorted(parts.glob("*.safetensors"))
    assert len(files) > 1
    assert manifest.verify(files)["files"] == checksums(parts)
    assert open_model(parts).tokenizer is not None
    delta = fineprune.save_delta(make_pruned(), tmp_path / "delta", base, tokenizer).folder
    assert manifest.verify([delta / "delta.safetensors"])["files"] == checksums(delta)
    about = json.loads((small / "fineprune.json").read_text())
    assert about["bytes"] == (small / "model.safetensors").stat().st_size


def test_a_changed_config_is_refused_by_every_reader(small, make_pruned, base, tmp_path):
    delta = fineprune.save_delta(make_pruned(), tmp_path / "delta", base).folder
    plain = type(make_pruned()).from_pretrained
    for folder, readers in ((small, (load, open_model, plain)), (delta, (load, open_model))):
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
        for reader in readers:
            with pytest.raises(FinepruneError, match=r"config\.json: does not match its checksum"):
                reader(folder)


def test_a_changed_tokenizer_is_refused_where_it_is_opened(small):
    path = small / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(FinepruneError, match=r"tokenizer\.json: does not match its checksum"):
        open_model(small)
    load(small)  # whoever replaced it on purpose saves the model again
    path.unlink()
    with pytest.raises(FinepruneError, match=r"tokenizer\.json: cannot be read \(No such file"):
        open_model(small)


def test_folders_of_an_older_version_have_no_list(compact, monkeypatch, make_pruned, tmp_path):
    monkeypatch.setattr("fineprune.checkpoint.compact.write_checksums", lambda folder: None)
    older = fineprune.save_compact(make_pruned(), tmp_path / "older").folder
    with safe_open(older / "model.safetensors", framework="numpy") as file:
        assert "files" not in json.loads(file.metadata()["fineprune"])
    path = older / "config.json"
    path.write_text(path.read_text() + "\n")
    assert load(older).num_parameters() == load(compact).num_parameters()
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(FinepruneError, match=r"a layer more than config\.json has"):
        load(older)


def test_a_copied_folder_and_one_that_is_saved_again_open(small, tmp_path):
    copy = Path(shutil.copytree(small, tmp_path / "copy"))
    (copy / "README.md").write_text("mine")
    (copy / "fineprune.json").unlink()
    model = open_model(copy).model
    model.config.name = "mine"
    model.save_pretrained(copy)
    assert open_model(copy).model.config.name == "mine"


def test_a_panic_of_tokenizers_is_one_line():
    class PanicException(BaseException):
        pass

    for error in (PanicException("a\nb"), ValueError("a\nb"), OSError("a b")):
        with pytest.raises(FinepruneError, match=r"^here: a b$"), explained("here"):
            raise error
    with pytest.raises(FinepruneError, match=r"^ours$"), explained("here"):
        raise FinepruneError("ours")
    with pytest.raises(KeyboardInterrupt), explained("here"):
        raise KeyboardInterrupt
