"""Read the manifest of a compact checkpoint and check every byte of the checkpoint against it.

The manifest is part of the metadata of each safetensors file. It has a checksum for every tensor of the
model, the names of the pruned matrices and the number of weights that they keep; docs/format.md describes it.
fineprune itself writes and checks manifests with these functions too. Tensors are read as bytes, because
numpy lacks some of their types (bfloat16).
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
from fineprune_runtime.reading import JSON_LIMIT, check_regular

KEY = "fineprune"  # in a file's metadata

# A type by its name in safetensors: its name in torch, which enters the checksums, and bytes of an element.
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
    """A tensor as stored in a safetensors file."""

    name: str
    dtype: str
    """The type by its name in safetensors: "F32", "BF16", "U8" and so on."""
    shape: tuple[int, ...]
    data: Bytes
    """Its bytes, 1-d and read-only, mapped from the file into memory."""

    @property
    def is_blob(self) -> bool:
        """Whether the tensor is a packed matrix."""
        return self.dtype == "U8" and len(self.shape) == 1 and codec.is_blob(self.data)

    @property
    def checksum(self) -> int:
        """The checksum that the manifest should have for the tensor."""
        return checksum(self.name, _TYPES[self.dtype][0], self.shape, self.data)


def read(file: str | Path) -> tuple[str | None, list[Stored]]:
    """Return the text of the manifest of a safetensors file (None if it has none), and its tensors.

    Only the structure of the file is checked.

    Raises:
        EngineError: the file is cut off, or a tensor has a type or a shape that no model has.
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
    """Check every byte of a compact checkpoint before it is used, and return its manifest.

    Args:
        files: the weight files of the checkpoint.
        shapes: the shapes of the model's tensors by name. A blob that is named here must have its shape.
        unpack: called with (name, blob, shape) in place of `codec.unpack`, for blobs named in `shapes`, so
            that the caller can keep the unpacked values. It raises `CodecError` as `codec.unpack` does.

    Raises:
        EngineError: a file is cut off or changed, a tensor is missing, added or damaged, or the checkpoint
            does not keep the number of weights that its manifest says.
    """
    expected: dict[str, Any] | None = None
    seen: set[str] = set()
    kept = total = 0
    for file in files:
        text, tensors = read(file)
        expected = _parsed(file, text, expected)
        pruned = set(expected["pruned"])
        for tensor in tensors:
            name = tensor.name
            seen.add(name)
            if tensor.checksum != expected["tensors"].get(name):
                raise EngineError(f"{file}: {name} does not match its checksum: save or fetch the file again")
            if tensor.is_blob:
                header = _checked(file, tensor, (shapes or {}).get(name), unpack)
                if name in pruned:
                    kept += header.kept
                    total += math.prod(header.shape)
    if expected is None:
        raise EngineError("no weights: a compact checkpoint has one .safetensors file or more")
    if missing := sorted(set(expected["tensors"]) - seen):
        raise EngineError(
            f"{missing[0]} is missing ({len(missing)} tensors in all): a file of the checkpoint is not there"
        )
    if (kept, total) != (expected["kept"], expected["total"]):
        raise EngineError(
            f"the checkpoint says that it keeps {expected['kept']:,} of {expected['total']:,} weights, "
            f"and holds {kept:,} of {total:,}"
        )
    return expected


def verify_files(folder: Path, expected: Mapping[str, Any]) -> None:
    """Check the files beside the weights (config.json, the tokenizer's) against a manifest.

    Args:
        folder: the folder of the checkpoint.
        expected: its manifest, as `verify` returns it; one of an older version does not list these files, and
            they are not checked then.

    Raises:
        EngineError: one of the files is missing, or was changed.
    """
    listed = expected.get("files", {})
    if not isinstance(listed, dict) or not all(map(_is_inside, listed)):
        raise EngineError(f"{folder}: the list of files in its fineprune manifest cannot be read")
    for name, crc in listed.items():
        try:
            check_regular(folder / name, JSON_LIMIT)
            content = (folder / name).read_bytes()
        except OSError as error:
            raise EngineError(
                f"{folder / name}: cannot be read ({error.strerror}); save or fetch it again"
            ) from error
        if zlib.crc32(content) != crc:
            raise EngineError(
                f"{folder / name}: does not match its checksum, it was changed after the model was saved; "
                "save or fetch the model again"
            )


def _is_inside(name: str) -> bool:
    """Return whether a name is that of a file in the folder, or in one of its folders: `1_Pooling/…`."""
    parts = name.split("/")
    return len(parts) <= 2 and all(part not in ("", ".", "..") and Path(part).name == part for part in parts)


def checksum(name: str, dtype: str, shape: tuple[int, ...], data: Bytes) -> int:
    """Return the CRC-32 of the name of a tensor, its type (by its name in torch), its shape and its bytes."""
    return zlib.crc32(data.data, zlib.crc32(f"{name}{dtype}{shape}".encode()))


def _parsed(file: Any, text: str | None, before: dict[str, Any] | None) -> dict[str, Any]:
    if text is None:
        raise EngineError(
            f"{file}: has no fineprune manifest; it is no compact checkpoint, or one that was rewritten"
        )
    try:
        content = json.loads(text)
        version, tensors, pruned = content["version"], content["tensors"], content["pruned"]
        integers = all(isinstance(number, int) for number in (version, content["kept"], content["total"]))
        named = isinstance(pruned, list) and all(isinstance(name, str) for name in pruned)
        if not (integers and named and isinstance(tensors, dict)):
            raise TypeError("wrong types in it")
    except (ValueError, RecursionError, KeyError, TypeError) as error:  # a number too long: ValueError
        raise EngineError(f"{file}: its fineprune manifest cannot be read ({error})") from error
    if version != codec.VERSION:
        raise EngineError(
            f"{file}: format version {version}; this fineprune reads version {codec.VERSION}: upgrade it"
        )
    if before is not None and content != before:
        raise EngineError(f"{file}: belongs to another checkpoint than the files before it")
    return content  # type: ignore[no-any-return]


def _checked(
    file: Any,
    tensor: Stored,
    shape: tuple[int, ...] | None,
    unpack: Callable[[str, Bytes, tuple[int, ...]], Any] | None,
) -> codec.Header:
    try:
        header = codec.read_header(tensor.data)
        if shape is None:  # then nothing limits the sizes that the blob claims
            return header
        if unpack is None:
            codec.unpack(tensor.data, shape)
        else:
            unpack(tensor.name, tensor.data, shape)
        return header
    except codec.CodecError as error:
        raise EngineError(f"{file}: {tensor.name}: {error}") from error
