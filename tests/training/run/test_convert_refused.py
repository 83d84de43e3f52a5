"""What cannot be shipped, or not from there or to there, is said in one line, and nothing is written."""

from pathlib import Path

import pytest

from fineprune import FinepruneError
from fineprune.training.run.convert import compact_folder, dense_folder


@pytest.mark.parametrize("ship", [compact_folder, dense_folder])
def test_bad_places(ship, finished, copied, tmp_path, monkeypatch, files_in):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/data.csv").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("unfinished", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "unfinished/recipe.yaml").write_text("model: tiny\n")
    before = files_in(tmp_path)
    for source, out, message in (
        (finished, copied, "run: not empty, and no model that could be replaced"),
        (copied, copied, "run: not empty, and no model that could be replaced"),
        (finished, tmp_path / "full", "full: not empty, and no model"),
        (finished, tmp_path / "file", "file: is a file"),
        (finished, tmp_path, "not empty, and no model"),
        (tmp_path / "unfinished", tmp_path / "new", r"the run is not finished: fineprune run … --resume"),
        (tmp_path / "empty", tmp_path / "new", "empty: no model in it; name a run or a model folder"),
        (tmp_path / "file", tmp_path / "new", "file: no model in it"),
        (tmp_path / "nothing", tmp_path / "new", "nothing: no model in it"),
    ):
        with pytest.raises(FinepruneError, match=message) as caught:
            ship(source, out)
        assert "\n" not in str(caught.value)
    monkeypatch.chdir(copied / "model")
    with pytest.raises(FinepruneError, match="is, or holds, the current folder"):
        ship(copied, Path())
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"texts\.txt: cannot be read: No such file or directory$"),
        (b"", r"texts\.txt: no text in it; one a line is expected$"),
        (b"\n \n", r"texts\.txt: no text in it; one a line is expected$"),
        (b"caf\xe9\n", r"texts\.txt, line 1: byte 0xe9 is not UTF-8 text; save the file as UTF-8$"),
        ("folder", r"texts\.txt: cannot be read: Is a directory$"),
    ],
)
def test_bad_vocabulary_files(content, message, finished, tmp_path):
    file = tmp_path / "texts.txt"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(FinepruneError, match=message) as caught:
        compact_folder(finished, tmp_path / "small", texts=file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", "{", "results.json: cannot be read, it is damaged"),
        ("results.json", "[]", "results.json: not the results of a run"),
        ("results.json", '{"recipe": {"pruning": null}, "scores": 7}', "results.json: not the results"),
        ("model/tokenizer.json", "{", "model: cannot load the tokenizer"),
        ("model/config.json", "{", "config.json: no JSON object"),
        ("model/config.json", "{}", "config.json: names no architecture"),
        ("model/model.safetensors", "x", "model: cannot load the model"),
    ],
)
def test_damaged_files(file, content, message, copied, tmp_path):
    (copied / file).write_text(content)
    with pytest.raises(FinepruneError, match=message) as caught:
        compact_folder(copied, tmp_path / "small")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


def test_a_base_that_does_not_exist(finished, tmp_path, names):
    with pytest.raises(FinepruneError, match=r"base='no/where': cannot be loaded"):
        compact_folder(finished, tmp_path / "small", base="no/where")
    assert names(tmp_path) == set()


def test_a_model_that_is_not_sparse(make_model, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "dense")
    with pytest.raises(FinepruneError, match="has nothing to pack"):
        compact_folder(tmp_path / "dense", tmp_path / "small")
    assert dense_folder(tmp_path / "dense", tmp_path / "plain").density == 1
