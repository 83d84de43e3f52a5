"""What the manifest of a compact checkpoint says, and whether every byte is as it was saved.

The manifest lies in the metadata of each safetensors file: a checksum for every tensor of the
model, and what is kept; docs/format.md describes it. fineprune writes it and checks it by these
functions too. Tensors are looked at as bytes, since numpy lacks some of their types (bfloat16).
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from fineprune_runtime import codec
from fineprune_runtime.codec import Bytes
from fineprune_runtime.errors import EngineError

KEY = "fineprune"  # in a file's metadata

# safetensors' word for a type: torch's, by which the checksums go, and the bytes of an element.
_TYPES = {
    "BOOL": ("torch.bool", 1),
    "U8": ("torch.uint8", 1),
    "I8": ("torch.int8", 1),
    "U16": ("torch.uint16", 2),
    "I16": ("torch.int16", 2),
    "U32": ("torch.uint32", 4),
    "I32": ("torch.int32", 4),
    "U64": ("torch.uint64", 8),
    "I64": ("torch.int64", 8),
    "F8_E4M3": ("torch.float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("torch.float8_e4m3fnuz", 1),
    "F8_E5M2": ("torch.float8_e5m2", 1),
    "F8_E5M2FNUZ": ("torch.float8_e5m2fnuz", 1),
    "F8_E8M0": ("torch.float8_e8m0fnu", 1),
    "F16": ("torch.float16", 2),
    "BF16": ("torch.bfloat16", 2),
    "F32": ("torch.float32", 4),
    "F64": ("torch.float64", 8),
    "C64": ("torch.complex64", 8),
}


class Stored(NamedTuple):
    """A tensor as a safetensors file has it."""

    name: str
    dtype: str
    """safetensors' word: "F32", "BF16", "U8" and so on."""
    shape: tuple[int, ...]
    data: Bytes
    """Its bytes, 1-d and read-only: the file itself, mapped into memory."""

    @property
    def is_blob(self) -> bool:
        """Whether it is a packed matrix."""
        return self.dtype == "U8" and len(self.shape) == 1 and codec.is_blob(self.data)

    @property
    def checksum(self) -> int:
        """What the manifest should say of it."""
        return checksum(self.name, _TYPES[self.dtype][0], self.shape, self.data)


def read(file: str | Path) -> tuple[str | None, list[Stored]]:
    """The manifest's text, None without one, and the tensors of a safetensors file.

    Nothing but the file's own form is checked. Raises `EngineError` for a file that is cut off, and
    for a tensor of a type or a shape that no model has.
    """
    tensors = []
    try:
        # safetensors checks that the tensors follow one another without a gap, up to the file's end.
        with safe_open(file, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(KEY)
            content = np.asarray(np.memmap(file, np.uint8, "r"))
            begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
            for name in opened.offset_keys():
                part = opened.get_slice(name)
                dtype, shape = str(part.get_dtype()), tuple(part.get_shape())
                if dtype not in _TYPES or any(length >= 2**63 for length in shape):
                    raise SafetensorError(f"{name}: a tensor of type {dtype} and shape {shape}")
                end = begin + math.prod(shape) * _TYPES[dtype][1]
                tensors.append(Stored(name, dtype, shape, content[begin:end]))
                begin = end
    except (OSError, SafetensorError) as error:
        raise EngineError(f"{file}: cannot be read, it is cut off or damaged ({error})") from error
    return text, tensors


def verify(
    files: Iterable[str | Path],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    unpack: Callable[[str, Bytes, tuple[int, ...]], Any] | None = None,
) -> dict[str, Any]:
    """Check every byte of a compact checkpoint before anything is made of it; returns the manifest.

    `shapes`, where given, are the model's, by name: a blob of another shape is an error. For such a
    blob `unpack(name, blob, shape)` may stand in for `codec.unpack`, to keep what it holds; it
    raises `CodecError` as that does. Raises `EngineError` for a file that is cut off or changed, a
    tensor that is missing, added or damaged, and a checkpoint that does not hold what it says.
    """
    said: dict[str, Any] | None = None
    seen: set[str] = set()
    kept = total = 0
    for file in files:
        text, tensors = read(file)
        said = _parsed(file, text, said)
        pruned = set(said["pruned"])
        for tensor in tensors:
            name = tensor.name
            seen.add(name)
            if tensor.checksum != said["tensors"].get(name):
                raise EngineError(f"{file}: {name} is not what was saved: save or fetch the file again")
            if tensor.is_blob:
                header = _checked(file, tensor, (shapes or {}).get(name), unpack)
                if name in pruned:
                    kept += header.kept
                    total += math.prod(header.shape)
    if said is None:
        raise EngineError("no weights: a compact checkpoint has one .safetensors file or more")
    if missing := sorted(set(said["tensors"]) - seen):
        raise EngineError(
            f"{missing[0]} is missing ({len(missing)} tensors in all): a file of the checkpoint is not there"
        )
    if (kept, total) != (said["kept"], said["total"]):
        raise EngineError(
            f"the checkpoint says that it keeps {said['kept']:,} of {said['total']:,} weights, "
            f"and holds {kept:,} of {total:,}"
        )
    return said


def checksum(name: str, dtype: str, shape: tuple[int, ...], data: Bytes) -> int:
    """Of a tensor's name, type (torch's word), shape and bytes."""
    return zlib.crc32(data.data, zlib.crc32(f"{name}{dtype}{shape}".encode()))


def _parsed(file: Any, text: str | None, before: dict[str, Any] | None) -> dict[str, Any]:
    if text is None:
        raise EngineError(
            f"{file}: has no fineprune manifest; it is no compact checkpoint, or one that was rewritten"
        )
    try:
        said = json.loads(text)
        version, tensors, pruned = said["version"], said["tensors"], said["pruned"]
        whole = all(isinstance(number, int) for number in (version, said["kept"], said["total"]))
        named = isinstance(pruned, list) and all(isinstance(name, str) for name in pruned)
        if not (whole and named and isinstance(tensors, dict)):
            raise TypeError("wrong types in it")
    except (ValueError, RecursionError, KeyError, TypeError) as error:  # a number too long: ValueError
        raise EngineError(f"{file}: its fineprune manifest cannot be read ({error})") from error
    if version != codec.VERSION:
        raise EngineError(
            f"{file}: format version {version}; this fineprune reads version {codec.VERSION}: upgrade it"
        )
    if before is not None and said != before:
        raise EngineError(f"{file}: belongs to another checkpoint than the files before it")
    return said  # type: ignore[no-any-return]


def _checked(
    file: Any,
    tensor: Stored,
    shape: tuple[int, ...] | None,
    unpack: Callable[[str, Bytes, tuple[int, ...]], Any] | None,
) -> codec.Header:
    try:
        header = codec.read_header(tensor.data)
        if shape is None:  # nothing then bounds what the blob says of itself
            return header
        if unpack is None:
            codec.unpack(tensor.data, shape)
        else:
            unpack(tensor.name, tensor.data, shape)
        return header
    except codec.CodecError as error:
        raise EngineError(f"{file}: {tensor.name}: {error}") from error
