"""The weights of a compact checkpoint: damage, odd structure, and forged blobs with right checksums."""

import json
import math
import random
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fuzz.mutation import ODD, dumped, mangled
from safetensors import safe_open
from transformers import BertConfig, BertForSequenceClassification

import fineprune
from fineprune.checkpoint import packing
from fineprune.errors import FinepruneError
from fineprune_runtime import codec
from fineprune_runtime.manifest import KEY

NUMBERS = (0, 1, 2, 3, 7, 8, 9, 31, 32, 64, 127, 255, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)
FLOATS = (math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 1e-45, 1e-38, 2.0**121, 2.0**125, 3.4e38, 1.0)
SHAPES = ([], [0], [2**63, 0], [2**64 - 1, 0], [0] * 70, [1] * 70, [2**32, 2**32], [2**63 - 1, 0])
TYPES = ["BOOL", "F4", "F6_E2M3", "U8", "I8", "F8_E4M3", "F8_E8M0", "I16", "F16", "BF16", "F32", "C64", "I64"]
KNOWN = {"U8": torch.uint8, "I8": torch.int8, "BOOL": torch.bool, "F16": torch.float16, "F32": torch.float32}
# A blob's header fields but the checksum, as offset and format; the last two are dimensions.
FIELDS = ["0I", "4B", "5B", "6B", "7B", "12B", "13B", "14H", "16Q", "24Q", "32Q"]


class Stored(NamedTuple):
    """A tensor as a safetensors file has it."""

    dtype: str
    shape: list[int]
    data: bytes


class Target(NamedTuple):
    """A compact checkpoint that is right, and what it holds."""

    folder: Path
    content: bytes
    metadata: dict[str, str]
    tensors: dict[str, Stored]
    shapes: dict[str, tuple[int, ...]]
    arrays: dict[str, np.ndarray]
    state: dict[str, torch.Tensor]


class Case(NamedTuple):
    """A model.safetensors, and the blobs in it that differ from those saved."""

    content: bytes
    blobs: dict[str, bytes]
    forged: bool


def make_folder(folder: Path, values: Any, embeddings: Any) -> Path:
    """A compact checkpoint of some 10 kB, with dense, bitmask and gap positions."""
    sizes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 30,
        "max_position_embeddings": 12,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(hidden_size=16, intermediate_size=24, **sizes)
        model = BertForSequenceClassification(config).eval()
        linear = [part for part in model.bert.encoder.modules() if isinstance(part, torch.nn.Linear)]
        for index, layer in enumerate(linear):
            layer.weight.data[torch.rand_like(layer.weight) > (0.7 if index % 2 else 0.05)] = 0
    fineprune.save_compact(model, folder, values=values, embeddings=embeddings)
    return folder


def read_target(folder: Path) -> Target:
    content = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8:begin]), {}
    metadata = header.pop("__metadata__")
    for name, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        low, high = said["data_offsets"]
        tensors[name] = Stored(said["dtype"], said["shape"], content[begin + low : begin + high])
    state = fineprune.load(folder).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    blobs = {name: stored.data for name, stored in tensors.items() if stored.data.startswith(codec.MAGIC)}
    arrays = {name: codec.decode(np.frombuffer(blob, "u1"), shapes[name]) for name, blob in blobs.items()}
    return Target(folder, content, metadata, tensors, shapes, arrays, state)


def make_case(chance: random.Random, target: Target) -> Case:
    return chance.choice((broken, broken, tweaked, restructured, forged, forged))(chance, target)


def broken(chance: random.Random, target: Target) -> Case:
    """Damage anywhere, as by a disk or a network."""
    content = mangled(chance, target.content)
    blobs, place = {}, 8 + int.from_bytes(target.content[:8], "little")
    for name, stored in target.tensors.items():
        there = content[place : place + len(stored.data)]
        place += len(stored.data)
        if name in target.arrays and there != stored.data:
            blobs[name] = there
    return Case(content, blobs, False)


def tweaked(chance: random.Random, target: Target) -> Case:
    """Other numbers, or types, in the text of the header, the manifest's among them."""
    size = int.from_bytes(target.content[:8], "little")
    text, data = target.content[8 : 8 + size].decode(), target.content[8 + size :]
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        types = chance.random() < 0.1
        found = chance.choice(list(re.finditer(r'(?<="dtype":")[A-Z0-9]+' if types else r"\d+", text)))
        other = chance.choice(TYPES) if types else str(chance.choice((*NUMBERS, int(found[0]) + 1, -1)))
        text = text[: found.start()] + other + text[found.end() :]
    length = len(text) if chance.random() < 0.9 else chance.choice((0, 1, size, 99_999_999, 2**63, 2**64 - 1))
    return Case(struct.pack("<Q", length) + text.encode() + data, {}, False)


def restructured(chance: random.Random, target: Target) -> Case:
    """Well-formed JSON of an odd structure, in the manifest or in the header."""
    tensors, manifest = dict(target.tensors), json.loads(target.metadata[KEY])
    for _ in range(chance.choice((1, 1, 2))):
        name, odd, action = chance.choice(list(tensors)), chance.choice(ODD), chance.randrange(8)
        if action == 0:
            del tensors[name]
        elif action == 1:
            tensors[chance.choice(("more", "", "é", name + "x"))] = tensors[name]
        elif action == 2:
            shape = chance.choice(SHAPES)
            tensors[name] = Stored(chance.choice(("F32", *TYPES)), shape, bytes(4 * min(math.prod(shape), 1)))
        elif action == 3 or not (isinstance(manifest, dict) and manifest):
            manifest = odd
        elif action == 4:
            del manifest[chance.choice(list(manifest))]
        elif action == 5 and isinstance(manifest.get("tensors"), dict):
            manifest["tensors"][chance.choice((name, "more", "\ud800", ""))] = odd
        elif action == 6 and isinstance(manifest.get("pruned"), list):
            manifest["pruned"] = [*manifest["pruned"][: chance.randrange(9)], odd]
        else:
            manifest[chance.choice((*manifest, "more"))] = odd
    return Case(written(target.metadata, manifest, tensors), {}, False)


def forged(chance: random.Random, target: Target) -> Case:
    """A blob or a tensor of somebody's making, with checksums that are right."""
    tensors, manifest = dict(target.tensors), json.loads(target.metadata[KEY])
    blobs: dict[str, bytes] = {}
    if chance.random() < 0.1:
        name = chance.choice(list(tensors))
        dtype = chance.choice(list(KNOWN))
        shape = chance.choice(([], [0], [1], [4], [2, 3], [1] * 9, list(target.shapes[name]), [2**62, 0]))
        size = math.prod(shape) * KNOWN[dtype].itemsize
        data = chance.choice((bytes(size), (codec.MAGIC * (size // 4 + 1))[:size]))
        tensors[name] = Stored(dtype, shape, data)
    else:
        name = chance.choice(list(target.arrays))
        blob = tensors[name].data
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            blob = forged_blob(chance, blob, target.shapes[name])
        if len(blob) >= 12:
            blob = blob[:8] + struct.pack("<I", zlib.crc32(blob[:8] + blob[12:])) + blob[12:]
        if len(blob) >= 24 and name in manifest["pruned"] and chance.random() < 0.8:
            for sign, kept in ((1, blob[16:24]), (-1, tensors[name].data[16:24])):
                manifest["kept"] += sign * int.from_bytes(kept, "little")
        tensors[name] = Stored("U8", [len(blob)], blob)
        blobs[name] = blob
    stored = tensors[name]
    about = f"{name}{KNOWN[stored.dtype]}{tuple(stored.shape)}"
    manifest["tensors"][name] = zlib.crc32(about.encode() + stored.data)
    return Case(written(target.metadata, manifest, tensors), blobs, True)


def forged_blob(chance: random.Random, blob: bytes, shape: tuple[int, ...]) -> bytes:
    """One more change to a blob; the checksum is for the caller."""
    action = chance.randrange(6)
    if action == 0:
        values: Any = chance.choice(("mask", "float32", "float16", "bfloat16", "int8", "int4"))
        other = chance.choice((*[shape] * 4, shape[::-1], (math.prod(shape),), (), (0, *shape), (1, *shape)))
        seeded = np.random.default_rng(chance.randrange(2**32))
        kept = seeded.random(other) < chance.choice((0, 0.02, 0.2, 0.6, 1))
        array = np.where(kept, seeded.standard_normal(other), 0).astype(np.float32)
        return codec.encode(array, values).tobytes()
    if action == 1:
        field = chance.choice(FIELDS)
        offset, size = int(field[:-1]), struct.calcsize(field[-1])
        before = int.from_bytes(blob[offset : offset + size], "little")
        number = chance.choice((*NUMBERS, before + 1, before - 1)) % 256**size
        return blob[:offset] + number.to_bytes(size, "little") + blob[offset + size :]
    if action == 2 and len(blob) >= 44:  # where the scales are, if it has any
        offset = 40 + 4 * chance.randrange(min(30, (len(blob) - 40) // 4))
        return blob[:offset] + struct.pack("<f", chance.choice(FLOATS)) + blob[offset + 4 :]
    return mangled(chance, blob, 40)


def written(metadata: dict[str, str], manifest: Any, tensors: dict[str, Stored]) -> bytes:
    """A safetensors file with a manifest."""
    return packed_file(metadata | {KEY: dumped(manifest)}, tensors)


def packed_file(metadata: dict[str, str], tensors: dict[str, Stored]) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, stored in tensors.items():
        offsets = [len(data), len(data) + len(stored.data)]
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
        data += stored.data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def check_files(chance: random.Random, target: Target, scratch: Path) -> str:
    """Verify and decode one case; what came of it."""
    case, shapes, place = make_case(chance, target), chance.random() < 0.8, scratch / "model.safetensors"
    place.write_bytes(case.content)
    for name, blob in case.blobs.items():
        try:
            array = codec.decode(np.frombuffer(blob, np.uint8), target.shapes[name])
        except codec.CodecError:
            continue
        same_as(array, target.arrays[name], case, name)
    try:
        packing.verify([place], target.shapes if shapes else None)
    except FinepruneError:
        return "refused"
    with safe_open(place, framework="pt") as opened:
        for name in target.arrays:
            tensor = opened.get_tensor(name)
            if case.forged and not packing.is_blob(tensor):
                continue
            try:
                array = packing.unpack(tensor, target.shapes[name]).numpy()
            except codec.CodecError as error:
                if shapes:
                    raise AssertionError(f"{name} passed verify, and not decode: {error}") from error
                return "refused late"
            same_as(array, target.arrays[name], case, name)
    return "other" if case.forged else "same"


def same_as(array: np.ndarray, expected: np.ndarray, case: Case, name: str) -> None:
    if array.shape != expected.shape or array.dtype != expected.dtype:
        raise AssertionError(f"{name}: decodes to {array.dtype} {array.shape}, expected {expected.shape}")
    if not case.forged and array.tobytes() != expected.tobytes():
        raise AssertionError(f"{name}: decodes to other values, and no checksum told")


class Weights:
    """`packing.verify`, and what it lets through decoded."""

    share = 4.0
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        types = (("int8", "int4"), ("float32", "keep"), ("float16", "int8"), ("bfloat16", "float16"))
        self.targets = [read_target(make_folder(folder / "-".join(pair), *pair)) for pair in types]
        self.size = max(len(target.content) for target in self.targets)

    def check(self, chance: random.Random, scratch: Path) -> str:
        return check_files(chance, chance.choice(self.targets), scratch)
