"""What is read of a checkpoint without torch; what is refused is in tests/checkpoint/test_packing.py."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fineprune.checkpoint import packing
from fineprune_runtime import codec, manifest
from fineprune_runtime.errors import EngineError

SPARSE = np.array([[0, 2, 0], [0, 0, -1]], np.float32)
ABOUT = {"pruned": ["a"], "kept": 2, "total": 6}


@pytest.fixture
def file(tmp_path):
    """One blob, and tensors of types that numpy has and has not, whose order in the file is another."""
    state = {
        "a": torch.from_numpy(codec.encode(SPARSE)),
        "b": torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16),
        "c": torch.tensor(0.5),
        "none": torch.zeros(0, 4),
    }
    save_file(state, tmp_path / "model.safetensors", packing.manifest(state, ABOUT))
    return tmp_path / "model.safetensors"


def raw(path, header, data=b""):
    """A safetensors file of any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_tensors_as_they_lie_in_the_file(file):
    text, tensors = manifest.read(file)
    assert {key: json.loads(text)[key] for key in ABOUT} == ABOUT
    found = {tensor.name: tensor for tensor in tensors}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        "a": ("U8", (len(codec.encode(SPARSE)),)),
        "b": ("BF16", (1, 2)),
        "c": ("F32", ()),
        "none": ("F32", (0, 4)),
    }
    assert found["a"].data.tobytes() == codec.encode(SPARSE).tobytes()
    assert found["b"].data.tobytes() == bytes.fromhex("803F 00C0")  # 1.0 is 3F80, -2.0 is C000
    assert found["c"].data.tobytes() == bytes.fromhex("0000003F")
    assert found["none"].data.tobytes() == b""
    assert [name for name, tensor in found.items() if tensor.is_blob] == ["a"]
    assert not found["a"].data.flags.writeable


FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


@pytest.mark.parametrize(
    "dtype", ["bool", *INTEGERS, *FLOAT8, "float16", "bfloat16", "float32", "float64", "complex64"]
)
def test_every_type_has_torchs_name(dtype, tmp_path):
    state = {"first": torch.tensor([1, 0, 1]).to(getattr(torch, dtype)), "last": torch.ones(1)}
    said = packing.manifest(state, {"pruned": [], "kept": 0, "total": 0})
    save_file(state, tmp_path / "m", said)
    assert manifest.verify([tmp_path / "m"]) == json.loads(said["fineprune"])


def test_what_blobs_hold_can_be_kept(file):
    taken = {}
    manifest.verify(
        [file], {"a": (2, 3), "b": (1, 2)}, lambda name, *args: taken.update({name: codec.decode(*args)})
    )
    assert taken.keys() == {"a"}
    assert taken["a"].tolist() == SPARSE.tolist()
    with pytest.raises(
        EngineError, match=r"model.safetensors: a: holds an array of shape \(2, 3\), expected \(3, 2\)"
    ):
        manifest.verify([file], {"a": (3, 2)})
    with pytest.raises(EngineError, match=r"a: holds an array of shape \(2, 3\), expected \(3, 2\)"):
        manifest.verify([file], {"a": (3, 2)}, lambda _name, blob, shape: codec.decode(blob, shape))


@pytest.mark.parametrize(("dtype", "shape"), [("F4", [0]), ("F6_E2M3", [0]), ("F32", [2**63, 0])])
def test_tensors_that_no_model_has(dtype, shape, tmp_path):
    path = raw(tmp_path / "m", {"odd": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}})
    with pytest.raises(
        EngineError, match=r"m: cannot be read, it is cut off or damaged \(odd: a tensor of type"
    ):
        manifest.read(path)


def test_gaps_between_tensors_are_refused(tmp_path):
    """Offsets are not read again here: they follow from the sizes, as long as safetensors sees to that."""
    one = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    for begin in (1, 3):
        two = one | {"data_offsets": [begin, begin + 2]}
        with pytest.raises(EngineError, match="cannot be read"):
            manifest.read(raw(tmp_path / "m", {"one": one, "two": two}, bytes(begin + 2)))
    path = raw(tmp_path / "m", {"one": one | {"data_offsets": [2, 4]}, "two": one}, bytes([1, 2, 3, 4]))
    assert {tensor.name: tensor.data.tolist() for tensor in manifest.read(path)[1]} == {
        "two": [1, 2],
        "one": [3, 4],
    }


def test_torch_is_not_needed(file):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None;"  # importing them fails
        f"from fineprune_runtime import manifest; print(manifest.verify([{str(file)!r}])['kept'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_files_beside_the_weights_are_compared(tmp_path):
    (tmp_path / "config.json").write_bytes(b"{}")
    listed = {"files": {"config.json": 2745614147}}  # zlib.crc32(b"{}")
    manifest.verify_files(tmp_path, listed)
    (tmp_path / "config.json").write_bytes(b"{ }")
    with pytest.raises(EngineError, match=r"config\.json: does not match its checksum"):
        manifest.verify_files(tmp_path, listed)
    (tmp_path / "config.json").unlink()
    with pytest.raises(EngineError, match=r"config\.json: cannot be read"):
        manifest.verify_files(tmp_path, listed)
    with pytest.raises(EngineError, match="list of files"):
        manifest.verify_files(tmp_path, {"files": {"../config.json": 1}})
    manifest.verify_files(tmp_path, {})  # written by an older version
