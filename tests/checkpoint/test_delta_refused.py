"""Where a delta or its base is not what it was, or cannot be, there is no model, and no delta."""

import json
import shutil

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from fineprune import FinepruneError, _files, load, save_compact, save_delta
from fineprune.checkpoint import delta, packing
from fineprune.checkpoint.model_files import write_checksums
from fineprune_runtime import codec

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def folder(make_pruned, base, tmp_path, trained):
    """A delta of everything: masks, a matrix with new values, new embeddings, a new head."""
    model = trained(make_pruned(), "layer.0.output.dense.weight", "word_embeddings", "classifier")
    return save_delta(model, tmp_path / "delta", base).folder


# ---- the base -------------------------------------------------------------------------------------------


def test_a_base_that_moved(folder, base, same_weights, tmp_path):
    model = load(folder)
    base.rename(tmp_path / "moved")
    with pytest.raises(FinepruneError, match=r"base='.*base': cannot be loaded as BertForSequenceClassif"):
        load(folder)
    for place in (tmp_path / "moved", str(tmp_path / "moved")):
        assert same_weights(model, load(folder, base=place))


def test_a_compact_base(make_pruned, compact, tmp_path):
    with pytest.raises(FinepruneError, match=r"it is a compact model: .* FOLDER --format dense, and give"):
        save_delta(make_pruned(), tmp_path / "delta", compact)


def test_another_base(folder, base, make_dense, tmp_path):
    other = make_dense()
    with torch.no_grad():
        other.bert.embeddings.token_type_embeddings.weight[0, 0] += 1e-6
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(FinepruneError, match=r"other: not the base that .* its hash differs; .* base="):
        load(folder, base=tmp_path / "other")
    other.bert.save_pretrained(base)  # in place
    with pytest.raises(FinepruneError, match=r"base: not the base that"):
        load(folder)


def test_weights_of_another_base_that_are_not_taken_do_not_count(
    folder, make_dense, same_weights, tmp_path, trained
):
    model = load(folder)
    trained(make_dense(), "word_embeddings", "classifier").save_pretrained(tmp_path / "other")
    assert same_weights(model, load(folder, base=tmp_path / "other"))


@pytest.mark.parametrize(
    ("base", "why"),
    [
        ("nowhere", ""),
        ("no/where/at/all", ""),
        ("file", ""),
        ("empty", ""),
        ("broken", ""),
        ("smaller", r"bert.\S+ is \(8,\) there, \(16,\) in the model"),
        ("packed", r"weight is \(\d+,\) there, \(16, 16\) in the model"),
    ],
)
def test_no_base(base, why, make_pruned, make_dense, tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, size in (("broken", 16), ("smaller", 8)):
        make_dense(hidden_size=size).save_pretrained(tmp_path / name)
    save_compact(make_pruned(), "packed")
    (tmp_path / "broken/model.safetensors").write_bytes(b"\0" * 50)
    before = names(tmp_path)
    message = rf"base='{base}': cannot be loaded as BertForSequenceClassification \(.*{why}"
    with pytest.raises(FinepruneError, match=message) as caught:
        save_delta(make_pruned(), tmp_path / "delta", base)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before


def test_the_base_is_not_overwritten(make_pruned, base, tmp_path):
    (tmp_path / "link").symlink_to(base)
    before = {path: path.read_bytes() for path in base.iterdir()}
    for place in (base, tmp_path / "link"):
        with pytest.raises(FinepruneError, match="is the base, which the delta needs"):
            save_delta(make_pruned(), place, base)
    assert {path: path.read_bytes() for path in base.iterdir()} == before


def test_mixed_types_are_refused(make_pruned, base, tmp_path, trained, names):
    model = trained(make_pruned(), "classifier").to(torch.bfloat16)
    with torch.no_grad():
        model.classifier.float().weight.add_(1e-4)
    with pytest.raises(FinepruneError, match=r"classifier.weight: is torch.float32, .* cast the whole model"):
        save_delta(model, tmp_path / "delta", base)
    assert names(tmp_path) == {"base"}


def test_a_model_with_more_than_its_config_says(make_pruned, base, tmp_path):
    model = make_pruned()
    model.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(FinepruneError, match=r"adapter.weight: the class BertForSeq.* has no such weight"):
        save_delta(model, tmp_path / "delta", base)


# ---- damaged, forged, cut short -------------------------------------------------------------------------


def rewrite(folder, change):
    """Weights changed by someone who knows the format: the manifest is made anew."""
    tensors = load_file(folder / delta.WEIGHTS)
    pruned = packing.verify([folder / delta.WEIGHTS])["pruned"]
    change(tensors)
    headers = [codec.read_header(tensors[name].numpy()) for name in pruned if name in tensors]
    kept = {
        "pruned": pruned,
        "kept": sum(header.kept for header in headers),
        "total": sum(torch.Size(header.shape).numel() for header in headers),
    }
    save_file(tensors, folder / delta.WEIGHTS, packing.manifest(tensors, kept))


def mask(*shape):
    return torch.from_numpy(codec.encode(np.ones(shape, np.float32), "mask"))


def test_one_byte_of_the_weights(folder):
    file = folder / delta.WEIGHTS
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(0, start, 97), *range(start, len(whole), 1009), len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(FinepruneError):
            load(folder)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_weights_cut_off(length, folder):
    file = folder / delta.WEIGHTS
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(FinepruneError, match=r"delta.safetensors: cannot be read, it is cut off or damaged"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(EMBEDDINGS), f"{EMBEDDINGS} is in neither the delta nor the base"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "the model of config.json has no more"),
        (lambda tensors: tensors.update({EMBEDDINGS: torch.ones(1)}), r"embeddings.weight is \(1,\), in the"),
        (lambda tensors: tensors.update({QUERY: mask(2, 2)}), r"shape \(2, 2\), expected \(16, 16\)"),
    ],
)  # fmt: skip
def test_weights_of_another_model(change, message, folder):
    rewrite(folder, change)
    with pytest.raises(FinepruneError, match=message):
        load(folder)


def test_a_weights_file_of_plain_tensors(folder):
    save_file(load_file(folder / delta.WEIGHTS), folder / delta.WEIGHTS)
    with pytest.raises(FinepruneError, match="has no fineprune manifest"):
        load(folder)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"7", b"\xff", b"{}", b'{"base": []}', b"[" * 9999]
)
def test_fineprune_json_is_damaged(content, folder):
    (folder / "fineprune.json").unlink()
    if content is not None:
        (folder / "fineprune.json").write_bytes(content)
    with pytest.raises(FinepruneError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float31"}, "not a whole delta"),
        ({"dtype": "nn"}, "not a whole delta"),
        ({"dtype": 7}, "not a whole delta"),
        ({"dtype": None}, "not a whole delta"),
        ({"dtype": "int8"}, "cannot be loaded as"),
        ({"dtype": "float16"}, "not the base"),
        ({"base": {"name": 7}}, "base='7': cannot be loaded"),
        ({"base": {"name": None}}, "base='None': cannot be loaded"),
        ({"base": {"name": "../.."}}, "base='../..': cannot be loaded"),
        ({"base": {"sha256": "0" * 64}}, "not the base"),
        ({"base": {"sha256": None}}, "not the base"),
        ({"base": {"tensors": None}}, "not a whole delta"),
        ({"base": {"tensors": 7}}, "not a whole delta"),
        ({"base": {"tensors": [[1], {}]}}, "not the base"),
        ({"base": {"tensors": "abc"}}, "not the base"),
        ({"base": {"tensors": []}}, "not the base"),
        ({"base": {"tensors": ["no.such.weight"]}}, "not the base"),
    ],
)  # fmt: skip
def test_fineprune_json_lies(change, message, folder, change_json, monkeypatch):
    change_json(folder / "fineprune.json", **change)
    with pytest.raises(FinepruneError, match=message):
        load(folder)


def test_names_of_the_base_with_their_right_hash(folder, base):
    """Whoever leaves out a name, and knows the hash of the others, gets no mask over something unchecked."""
    about = json.loads((folder / "fineprune.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(base)
    about["base"]["tensors"].remove(QUERY)
    about["base"]["sha256"] = delta._hash(model.state_dict(), about["base"]["tensors"])
    (folder / "fineprune.json").write_text(json.dumps(about))
    with pytest.raises(FinepruneError, match="a mask covers what is not the base's"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": ["a", "b", "c"]}, "not a whole delta|cannot be loaded as"),
        ({"hidden_size": 32}, "cannot be loaded as BertForSequenceClassification"),
        ({"num_hidden_layers": 3}, "is in neither the delta nor the base"),
        ({"num_hidden_layers": 1}, "not the base"),
        ({"hidden_size": "x"}, "not a whole delta|cannot be loaded as"),
        ({"model_type": "no-such-type"}, "not a whole delta"),
    ],
)  # fmt: skip
def test_config_json_lies(change, message, folder, change_json):
    change_json(folder / "config.json", **change)
    with pytest.raises(FinepruneError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_from_pretrained_alone_stops(folder):
    with pytest.raises(OSError, match=r"no file named model.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    done = forked.python(
        "import sys; from transformers import AutoModelForSequenceClassification as A;"
        "A.from_pretrained(sys.argv[1])",
        folder,
    )
    assert done.returncode == 1
    assert "no file named model.safetensors" in done.stderr


def test_a_head_of_another_size(make_dense, make_pruned, tmp_path):
    make_dense().bert.save_pretrained(tmp_path / "base")  # so that the base's own head does not object
    folder = save_delta(make_pruned(), tmp_path / "delta", tmp_path / "base").folder
    labels = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | labels))
    write_checksums(folder)
    with pytest.raises(FinepruneError, match=r"classifier.bias is \(2,\), in the .* \(3,\); fetch both"):
        load(folder)


def test_what_a_delta_is_not_loaded_with(folder):
    for given in ({"packed": True}, {"dtype": torch.float16}):
        with pytest.raises(FinepruneError, match="is a delta, which takes no"):
            load(folder, **given)


@pytest.mark.parametrize("crash", ["write_json", "load_delta", "replace_folder"])
@pytest.mark.parametrize("before", [False, True])
def test_a_crash_leaves_what_was_there(
    crash, before, make_pruned, base, tmp_path, monkeypatch, trained, names
):
    model, place = make_pruned(), tmp_path / "delta"
    if before:
        save_delta(model, place, base)
    there = {path: path.read_bytes() for path in place.glob("*")}

    def crashing(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_files if crash == "replace_folder" else delta, crash, crashing)
    with pytest.raises(KeyboardInterrupt):
        save_delta(trained(model), place, base)
    assert {path: path.read_bytes() for path in place.glob("*")} == there
    assert names(tmp_path) == ({"base", "delta"} if before else {"base"})


def test_what_is_written_is_compared(make_pruned, base, tmp_path, monkeypatch, names):
    real = delta._restored
    monkeypatch.setattr(delta, "_restored", lambda tensor, *rest: real(tensor, *rest).flip(0))
    with pytest.raises(FinepruneError, match="the written file differs from the model"):
        save_delta(make_pruned(), tmp_path / "delta", base)
    assert names(tmp_path) == {"base"}


def test_a_folder_that_is_no_model(make_pruned, base, tmp_path):
    shutil.copytree(base, tmp_path / "full")
    (tmp_path / "full/config.json").rename(tmp_path / "full/data.csv")
    with pytest.raises(FinepruneError, match="not empty, and no model that could be replaced"):
        save_delta(make_pruned(), tmp_path / "full", base)
