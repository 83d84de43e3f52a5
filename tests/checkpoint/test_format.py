"""docs/format.md is enough to read and to write the format: a reader and a writer made from it, bit by bit.

A folder written by the page opens, so folders of all earlier versions that kept to it open too.
"""

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.checkpoint import packing
from fineprune.checkpoint.transformers_hook import CompactConfig
from fineprune.pruning.targets import find_targets
from fineprune_runtime.codec import decode, encode

PAGE = Path(__file__).parents[2] / "docs" / "format.md"


def crc32(data):
    """CRC-32 by its definition, to be sure that zlib's is meant."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def bit(data, place):
    return data[place // 8] >> (place % 8) & 1


def read(blob):
    """Shape and elements, as Python numbers."""
    assert blob[:5] == b"\x93FPK\x01"
    form, values, dimensions, checksum, r, *zeros, k = struct.unpack_from("<BBBIBBHQ", blob, 5)
    assert zeros == [0, 0]
    assert checksum == crc32(blob[:8] + blob[12:])
    shape = struct.unpack_from(f"<{dimensions}Q", blob, 24)
    n = 1
    for size in shape:
        n *= size
    rows = shape[0] if dimensions > 1 else 1
    rest = blob[24 + 8 * dimensions :]
    scales = struct.unpack_from(f"<{rows}f", rest) if values in (4, 5) else ()
    rest = rest[4 * len(scales) :]
    size = (0, 4 * k, 2 * k, 2 * k, k, (k + 1) // 2)[values]
    stored, rest = rest[:size], rest[size:]
    if values == 0:
        stored = [1] * k
    elif values == 1:
        stored = struct.unpack(f"<{k}f", stored)
    elif values == 2:
        stored = struct.unpack(f"<{k}e", stored)
    elif values == 3:
        stored = [struct.unpack("<f", b"\0\0" + stored[2 * i : 2 * i + 2])[0] for i in range(k)]
    elif values == 4:
        stored = struct.unpack(f"{k}b", stored)
    else:
        halves = [half for byte in stored for half in (byte & 15, byte >> 4)][:k]
        stored = [half - 16 if half > 7 else half for half in halves]
    where = positions(form, r, k, n, rest)
    elements = [0.0] * n
    for place, value in zip(where, stored, strict=True):
        elements[place] = value * scales[place // (n // rows)] if scales else value
    return shape, elements


def positions(form, r, k, n, rest):
    if k == 0 or form == 0:
        assert rest == b""
        return range(k)
    if form == 1:
        return [place for place in range(n) if bit(rest, place)]
    plane = -(-k // 8)
    unary = rest[r * plane :]
    where, place, at = [], -1, 0
    for i in range(k):
        quotient = 0
        while not bit(unary, at):
            quotient, at = quotient + 1, at + 1
        at += 1
        place += (quotient << r) + sum(bit(rest[j * plane :], i) << j for j in range(r)) + 1
        where.append(place)
    assert -(-at // 8) == len(unary)
    return where


def write(array):
    """The float32 blob of a matrix, the positions as a bitmap (form 1), without the codec."""
    elements = array.reshape(-1).tolist()
    stored = [value for value in elements if value]
    bitmap = bytearray(-(-len(elements) // 8))
    for place, value in enumerate(elements):
        bitmap[place // 8] |= bool(value) << (place % 8)
    head = b"\x93FPK\x01" + bytes([1, 1, array.ndim])
    rest = struct.pack(f"<BBHQ{array.ndim}Q{len(stored)}f", 0, 0, 0, len(stored), *array.shape, *stored)
    return head + struct.pack("<I", crc32(head + rest + bitmap)) + rest + bitmap


def write_safetensors(path, tensors, metadata):
    """`tensors`: names, each with the type and the shape as safetensors has them, and the bytes."""
    header, data = {"__metadata__": metadata}, b""
    for name, (kind, shape, content) in tensors.items():
        ends = [len(data), len(data) + len(content)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": ends}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_the_worked_example():
    (block,) = re.findall(r"```\n(93 46 .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [re.split(r" {3,}", line)[0] for line in block.splitlines()]
    array = np.zeros((2, 40), np.float32)
    array[0, 6], array[1, 8], array[1, 22] = 127, -0.5, 1
    blob = bytes.fromhex(" ".join(lines))
    assert encode(array, "int8").tobytes() == blob
    shape, elements = read(blob)
    assert shape == (2, 40)
    assert {place: value for place, value in enumerate(elements) if value} == pytest.approx(
        {6: 127, 48: -0.49607778, 62: 1.00002980}, rel=1e-7
    )


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 12), max_size=3),
    st.sampled_from([0, 0.03, 0.2, 0.6, 1]),
    st.sampled_from(["mask", "float32", "float16", "bfloat16", "int8", "int4"]),
    st.integers(0, 2**32),
)
def test_the_page_is_enough_to_read_with(shape, density, values, seed):
    random = np.random.default_rng(seed)
    array = (random.standard_normal(shape) * (random.random(shape) < density)).astype(np.float32)
    blob = encode(array, values)
    expected = decode(blob, shape)
    found_shape, elements = read(blob.tobytes())
    assert found_shape == tuple(shape)
    assert np.array(elements, np.float32).tolist() == expected.reshape(-1).tolist()


def test_the_manifest():
    blob = torch.from_numpy(encode(np.eye(4, dtype=np.float32)))
    state = {
        "ä.weight": blob,
        "bias": torch.tensor([1.0, -2.0]),
        "scale": torch.tensor(0.5, dtype=torch.bfloat16),
    }
    text = packing.manifest(state, {"pruned": ["ä.weight"], "kept": 4, "total": 16})["fineprune"]
    # -2.0 is C0000000, and 0.5 in bfloat16 is 3F00
    assert json.loads(text) == {
        "version": 1,
        "pruned": ["ä.weight"],
        "kept": 4,
        "total": 16,
        "tensors": {
            "ä.weight": crc32(f"ä.weighttorch.uint8({len(blob)},)".encode() + blob.numpy().tobytes()),
            "bias": crc32(b"biastorch.float32(2,)" + bytes.fromhex("0000803F 000000C0")),
            "scale": crc32(b"scaletorch.bfloat16()" + bytes.fromhex("003F")),
        },
    }


def test_the_settings():
    text, shrunk = re.findall(r'"quantization_config": (\{.*?\})', PAGE.read_text(encoding="utf-8"))
    assert CompactConfig("int8", "int4").to_dict() == json.loads(text)
    assert CompactConfig(shapes="file").to_dict() == json.loads(shrunk)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_folder_written_by_the_page_opens(name, make_pruned, auto_class, tmp_path):
    """As the first version of fineprune wrote it: config.json and model.safetensors alone are needed."""
    model = make_pruned(name)
    packed = {f"{layer}.weight" for layer in find_targets(model)}
    tensors, sums, kept, total = {}, {}, 0, 0
    for key, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        if key in packed:
            kept, total = kept + np.count_nonzero(array), total + array.size
            content = write(array)
            tensors[key] = "U8", [len(content)], content
            said = f"{key}torch.uint8({len(content)},)"
        else:
            content = array.astype("<f4").tobytes()
            tensors[key] = "F32", list(array.shape), content
            said = f"{key}torch.float32{array.shape}"
        sums[key] = zlib.crc32(said.encode() + content)
    manifest = {"version": 1, "pruned": sorted(packed), "kept": int(kept), "total": total, "tensors": sums}
    metadata = {"format": "pt", "fineprune": json.dumps(manifest)}
    write_safetensors(tmp_path / "model.safetensors", tensors, metadata)
    settings = {"quant_method": "fineprune", "version": 1, "values": "float32", "embeddings": "keep"}
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    loaded = auto_class(name).from_pretrained(tmp_path)
    for (key, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), key
