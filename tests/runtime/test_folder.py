import json
import os
import shutil

import numpy as np
import pytest
import torch
from runtime.models import make_model, make_tokenizer
from safetensors.torch import load_file, save_file

from fineprune import save_compact
from fineprune_runtime import EngineError, codec
from fineprune_runtime.folder import Folder, Table
from fineprune_runtime.loading import load

WORDS = "bert.embeddings.word_embeddings.weight"
POSITIONS = "bert.embeddings.position_embeddings.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
POOLER = "bert.pooler.dense.weight"


@pytest.fixture(scope="module")
def model():
    """With a pooler that is sparse too, which is then packed like the encoder's matrices."""
    made = make_model("bert", "text")
    with torch.no_grad():
        made.bert.pooler.dense.weight[:, 2:] = 0
    return made


@pytest.fixture
def packed(model, tmp_path):
    """`packed(values, embeddings)`: an opened compact folder."""

    def make(values="float32", embeddings="keep", **settings):
        return Folder(save_compact(model, tmp_path / "small", None, values, embeddings, **settings).folder)

    return make


@pytest.fixture
def dense(model, tmp_path):
    """A folder as transformers saves it."""
    model.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def weights(folder):
    """What torch reads from the weight file."""
    return load_file(folder / "model.safetensors")


def rewrite(folder, change):
    """Change a JSON file of a folder."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "int8"])
def test_matrices_hold_what_torch_unpacks(packed, values):
    folder = packed(values)
    blob = weights(folder.path)[QUERY].numpy()
    expected = codec.decode(blob, (16, 16))
    matrix = folder.matrix(QUERY, (16, 16))
    assert np.array_equal(matrix.to_dense(), expected)
    assert len(matrix.values) == np.count_nonzero(expected)
    assert np.array_equal(
        folder.dense(POOLER, (16, 16)), codec.decode(weights(folder.path)[POOLER].numpy(), (16, 16))
    )


@pytest.mark.parametrize(
    ("embeddings", "stored", "error"),
    [
        ("keep", np.float32, 0.0),
        ("float16", np.float16, 1e-3),
        ("int8", np.int8, 5e-3),
        ("int4", np.int8, 0.1),
    ],
)
def test_tables_stay_as_small_as_they_are_stored(packed, model, embeddings, stored, error):
    folder = packed("float32", embeddings)
    rows = len(model.bert.embeddings.word_embeddings.weight)
    table = folder.table(WORDS, (rows, 16))
    expected = model.bert.embeddings.word_embeddings.weight.detach().numpy()
    assert table.rows.dtype == stored
    assert table.nbytes <= rows * 16 * stored().itemsize + 4 * rows
    ids = np.array([[0, 5, rows - 1], [5, 5, 1]])
    looked_up = table(ids)
    assert looked_up.dtype == np.float32
    assert looked_up.shape == (2, 3, 16)
    assert np.abs(looked_up - expected[ids]).max() <= error * np.abs(expected).max()
    if embeddings != "keep":
        unpacked = codec.decode(weights(folder.path)[WORDS].numpy(), (rows, 16))
        assert np.array_equal(looked_up, unpacked[ids])


@pytest.mark.parametrize("embeddings", ["float16", "int8", "int4"])
def test_a_table_with_empty_rows(tmp_path, embeddings):
    model = make_model("bert", "text")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3:30] = 0  # then its zeros are not stored
    folder = Folder(save_compact(model, tmp_path / "small", None, "float32", embeddings).folder)
    rows = len(model.bert.embeddings.word_embeddings.weight)
    blob = weights(folder.path)[WORDS].numpy()
    assert codec.read_header(blob).kept < rows * 16
    every = np.arange(rows)
    assert np.array_equal(folder.table(WORDS, (rows, 16))(every), codec.decode(blob, (rows, 16)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dense_tensors_of_each_type(model, dense, dtype):
    state = {name: tensor.to(dtype).clone() for name, tensor in model.state_dict().items()}
    save_file(state, dense / "model.safetensors")
    folder = Folder(dense)
    expected = state[QUERY].float().numpy()
    assert np.array_equal(folder.matrix(QUERY, (16, 16)).to_dense(), expected)
    assert folder.dense(QUERY, (16, 16)).dtype == np.float32
    rows = len(state[WORDS])
    table = folder.table(WORDS, (rows, 16))
    assert np.array_equal(table(np.arange(rows)), state[WORDS].float().numpy())
    assert table.rows.dtype == (np.float16 if dtype == torch.float16 else np.float32)
    assert folder.vector("classifier.bias").tolist() == state["classifier.bias"].float().tolist()
    assert WORDS in folder
    assert "lm_head.weight" not in folder


def test_tensors_that_are_not_aligned_in_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(3, dtype=torch.uint8), "b": torch.arange(3.0)}, tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["a"]["data_offsets"], header["b"]["data_offsets"] = [0, 3], [3, 15]
    text = json.dumps(header).encode()
    tensors = bytes([1, 1, 1]) + np.arange(3, dtype=np.float32).tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + tensors)
    assert Folder(tmp_path).dense("b", (3,)).tolist() == [0, 1, 2]


def test_weights_in_several_files(packed):
    one = packed()
    expected = one.matrix(QUERY, (16, 16)).to_dense()
    several = packed(max_shard_size="4KB")
    assert len(list(several.path.glob("*.safetensors"))) > 1
    assert np.array_equal(several.matrix(QUERY, (16, 16)).to_dense(), expected)
    sorted(several.path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(EngineError, match=r"cannot be read"):
        Folder(several.path)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(EngineError, match=r"nowhere: no such folder; name the folder of a model"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(EngineError, match=r"has no config.json, so it is no model"):
        Folder(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"no model that can run here; name .*model, which is one"):
        Folder(tmp_path)
    for path in (None, 3):
        with pytest.raises(EngineError, match=f"^folder is {path}, expected the path of a model's folder"):
            Folder(path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"has no model.safetensors; save the model as safetensors"):
        Folder(tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "config.json: cannot be read, it is damaged"),
    ("[" * 100_000, "config.json: cannot be read, it is damaged"),
    ("[]", "config.json: holds list, expected an object"),
    ("\xff", "config.json: cannot be read"),
])  # fmt: skip
def test_a_damaged_config(dense, text, message):
    (dense / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EngineError, match=message):
        Folder(dense)


def test_a_changed_byte_is_found(packed):
    folder = packed().path
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-5] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(EngineError, match=r"does not match its checksum: save or fetch the file again"):
        Folder(folder)


def test_a_file_that_was_cut_off(dense):
    raw = (dense / "model.safetensors").read_bytes()
    (dense / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(EngineError, match=r"cannot be read, it is cut off or damaged"):
        Folder(dense)


@pytest.mark.parametrize(("settings", "said"), [
    ({"version": 2}, "format version 2 with shapes None; this fineprune reads version 1: upgrade it"),
    ({"version": 1, "shapes": "file"}, "format version 1 with shapes 'file'; this fineprune reads version 2"),
    ({"version": 3, "shapes": "other"}, "format version 3 with shapes 'other'"),
])  # fmt: skip
def test_another_version_of_the_format(packed, settings, said):
    folder = packed().path
    asked = json.loads((folder / "config.json").read_text())["quantization_config"]
    rewrite(folder, {"quantization_config": asked | settings})
    with pytest.raises(EngineError, match=said):
        Folder(folder)


def test_weights_that_another_program_quantized(dense):
    rewrite(dense, {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(EngineError, match=r"quantized by another program than fineprune: .*bitsandbytes"):
        Folder(dense)


def test_weights_that_are_not_of_the_model(packed, dense):
    folder = packed("int8", "int8")
    with pytest.raises(EngineError, match=r"its weights lack x; they are not of the model in config.json"):
        folder.dense("x", (1,))
    for read in (folder.matrix, folder.dense, folder.table):
        with pytest.raises(
            EngineError, match=r"query.weight: holds an array of shape \(16, 16\), expected \(8, 32\)"
        ):
            read(QUERY, (8, 32))
    plain = Folder(dense)
    for read in (plain.matrix, plain.dense, plain.table):
        with pytest.raises(EngineError, match=r"of shape \(16, 16\), and config.json asks for \(8, 32\)"):
            read(QUERY, (8, 32))
    with pytest.raises(EngineError, match=r"is of shape \(40, 16\), and config.json asks for \(40,\)"):
        plain.vector(POSITIONS)
    save_file(weights(dense) | {"bias": torch.tensor(1.0)}, dense / "model.safetensors")
    with pytest.raises(EngineError, match=r"bias is of shape \(\), and config.json asks for \(1,\)"):
        Folder(dense).vector("bias")


def test_a_tensor_of_whole_numbers(dense):
    state = weights(dense)
    save_file(state | {QUERY: state[QUERY].int()}, dense / "model.safetensors")
    with pytest.raises(EngineError, match=r"query.weight is I32, allowed are F32, F16, BF16"):
        Folder(dense).matrix(QUERY, (16, 16))


@pytest.mark.parametrize(
    "named", [{"a": "../model.safetensors"}, {}, None, {"a": 3}, ["model.safetensors"], {"a": {"x": 1}}]
)
def test_an_index_names_files_of_the_folder(dense, named):
    shutil.move(dense / "model.safetensors", dense.parent / "model.safetensors")
    (dense / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(EngineError, match=r"weight_map does not name files of the folder"):
        Folder(dense)


@pytest.mark.parametrize(("name", "message"), [
    ("\ud800", r"ud800': cannot be read \(.*surrogates not allowed\)"),
    ("a\0b", r"x00b': cannot be read \(embedded null byte\)"),
    ("x" * 5000, r"xxx: cannot be read \(File name too long\)"),
    ("..", r"is not a regular file"),
    ("", r"is not a regular file"),
])  # fmt: skip
def test_an_index_with_names_that_no_file_has(dense, name, message):
    (dense / "model.safetensors").unlink()
    (dense / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(EngineError, match=message) as error:
        Folder(dense)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "itself"])
def test_files_that_are_none(dense, name, target):
    make_tokenizer("bert").save_pretrained(dense)
    (dense / name).unlink()
    if target == "pipe":
        os.mkfifo(dense / name)
    else:
        (dense / name).symlink_to(name if target == "itself" else target)
    with pytest.raises(EngineError, match=r"regular file|symbolic links|has no tokenizer.json"):
        load(dense)


def test_a_very_sparse_table_takes_little_memory(tmp_path):
    table = np.zeros((1000, 16), np.float32)
    table[[3, 998]] = np.arange(1, 33).reshape(2, 16)
    table[3, 5] = 0
    for values in ("float32", "float16", "int8"):
        blob = codec.encode(table, values)
        packed = {"words": blob, "none": codec.encode(0 * table, values)}
        tensors = {name: torch.from_numpy(each) for name, each in packed.items()}
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        folder = Folder(tmp_path)
        found = folder.table("words", (1000, 16))
        assert (found.size, found.rows.shape) == (1000, (2, 16))
        every = np.arange(1000).reshape(10, 100)
        assert np.array_equal(found(every), codec.decode(blob, (1000, 16))[every])
        empty = folder.table("none", (1000, 16))
        assert empty.size == 1000
        assert not empty(every).any()


def test_a_mask_is_no_weight(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    mask = torch.from_numpy(codec.encode(np.eye(4, dtype=np.float32), "mask"))
    vector = torch.from_numpy(codec.encode(np.ones(4, np.float32), "float32"))
    save_file({"mask": mask, "vector": vector}, tmp_path / "model.safetensors")
    folder = Folder(tmp_path)
    for read in (folder.matrix, folder.dense, folder.table):
        with pytest.raises(EngineError, match=r"mask: is a mask, expected numbers"):
            read("mask", (4, 4))
    with pytest.raises(EngineError, match=r"vector is packed, expected numbers"):
        folder.dense("vector", (4,))


def test_a_file_may_be_absent(dense):
    assert Folder(dense).json("tokenizer_config.json", needed=False) == {}


def test_a_table_by_hand():
    table = Table(np.array([[1, -2], [3, 4]], np.int8), np.array([0.5, 2], np.float32))
    assert table(np.array([1, 0, 1])).tolist() == [[6, 8], [0.5, -1], [6, 8]]
    assert table.nbytes == 4 + 8


def test_the_file_does_not_stay_mapped(dense):
    folder = Folder(dense)
    array = folder.dense(QUERY, (16, 16))
    while array.base is not None:
        array = array.base
    assert not isinstance(array, np.memmap)


def test_the_tokenizer_is_not_looked_at(dense):
    make_tokenizer("bert").save_pretrained(dense)
    (dense / "tokenizer.json").write_text("{")
    Folder(dense)
