"""Read a model folder without torch: config.json and the weights in its safetensors files.

Sparse matrices stay sparse, and embedding tables stay in the type they are stored in; everything else becomes
float32. When a folder that fineprune packed is opened, every byte is checked against its manifest.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime import codec, manifest
from fineprune_runtime.architectures import Vector, misfit
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Matrix

_METHOD = "fineprune"
_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class Table(NamedTuple):
    """An embedding table, as small in memory as in the file, except that an int4 level takes a whole byte."""

    rows: NDArray[Any]
    """(rows, width): float32, float16, or int8 levels."""
    scales: Vector | None = None
    """(rows,), the factors of the levels; None where the rows are not levels."""

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows of `ids`, an array of any shape, as float32 (..., width)."""
        rows: NDArray[np.float32] = self.rows[ids].astype(np.float32)
        return rows if self.scales is None else rows * self.scales[ids][..., None]

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self.rows.nbytes + (0 if self.scales is None else self.scales.nbytes)


class Folder:
    """An opened model folder: its `path`, its `config`, and its weights by name.

    Raises:
        EngineError: there is no such folder, or one of its files is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise EngineError(f"{path}: no such folder; name the folder of a model")
        self.config = self.json("config.json")
        files = self._files()
        asked = self.config.get("quantization_config")
        packed = isinstance(asked, Mapping) and asked.get("quant_method") == _METHOD
        if asked is not None and not packed:
            raise EngineError(f"{path}: its weights are quantized by another program than {_METHOD}: {asked}")
        if packed:
            manifest.verify(files)
        self._tensors = {tensor.name: (file, tensor) for file in files for tensor in manifest.read(file)[1]}

    def json(self, name: str, needed: bool = True) -> dict[str, Any]:
        """Return the object in a JSON file of the folder; {} if the file is absent and not `needed`."""
        file = self.path / name
        if not needed and not file.exists():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise EngineError(f"{self.path}: has no {name}, so it is no model that can run here") from error
        except (OSError, ValueError, RecursionError) as error:
            raise EngineError(f"{file}: cannot be read, it is damaged ({error})") from error
        if not isinstance(content, dict):
            raise EngineError(f"{file}: holds {type(content).__name__}, expected an object")
        return content

    def __contains__(self, name: str) -> bool:
        """Return whether the folder has a weight of that name."""
        return name in self._tensors

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """Return a weight of `shape` (outputs, inputs) by its non-zero elements."""
        file, tensor = self._tensor(name)
        if not tensor.is_blob:
            return Matrix.from_dense(self._floats(file, tensor, shape))
        try:
            return Matrix.from_blob(tensor.data, shape)
        except codec.CodecError as error:
            raise EngineError(f"{file}: {name}: {error}") from error

    def dense(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a weight of `shape` as a dense float32 array."""
        file, tensor = self._tensor(name)
        if not tensor.is_blob:
            return self._floats(file, tensor, shape).astype(np.float32, copy=False)
        try:
            return codec.decode(tensor.data, shape)
        except codec.CodecError as error:
            raise EngineError(f"{file}: {name}: {error}") from error

    def vector(self, name: str) -> Vector:
        """Return a bias, or the weight or bias of a norm: 1-d, of the size that it has in the file."""
        _, tensor = self._tensor(name)
        size = tensor.shape[:1]  # any further dimension is then refused as a misfit
        return self.dense(name, size)

    def table(self, name: str, shape: tuple[int, int]) -> Table:
        """Return an embedding table of `shape` (rows, width)."""
        file, tensor = self._tensor(name)
        if not tensor.is_blob:
            return Table(self._floats(file, tensor, shape))
        try:
            # Not codec.unpack: it lists positions even where every element is stored, 8 bytes for each.
            packed = codec.take_apart(tensor.data, shape)
        except codec.CodecError as error:
            raise EngineError(f"{file}: {name}: {error}") from error
        values = packed.values
        if packed.header.values == "float16":  # exact, because the values were unpacked from float16
            values = values.astype(np.float16)
        rows = values
        if packed.header.kept < shape[0] * shape[1]:
            rows = np.zeros(shape[0] * shape[1], values.dtype)
            rows[packed.positions] = values
        return Table(rows.reshape(shape), packed.scales if len(packed.scales) else None)

    def _tensor(self, name: str) -> tuple[Path, manifest.Stored]:
        if name not in self._tensors:
            raise EngineError(
                f"{self.path}: its weights lack {name}; they are not of the model in config.json"
            )
        return self._tensors[name]

    def _floats(self, file: Path, tensor: manifest.Stored, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a copy of a dense tensor: float16 unchanged, bfloat16 as float32."""
        if tensor.dtype not in _FLOATS:
            raise EngineError(f"{file}: {tensor.name} is {tensor.dtype}, allowed are {', '.join(_FLOATS)}")
        if tensor.shape != shape:
            raise misfit(tensor.name, tensor.shape, shape)
        # Copy the bytes first: in the file they may be unaligned, and the file must not stay mapped.
        values = tensor.data.copy().view(_FLOATS[tensor.dtype]).reshape(shape)
        if tensor.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def _files(self) -> list[Path]:
        """Return the weight files: the single file, or those that the index names."""
        if (self.path / _FILE).is_file():
            return [self.path / _FILE]
        if not (self.path / _INDEX).is_file():
            raise EngineError(
                f"{self.path}: has no {_FILE}; save the model as safetensors, and of a delta the whole model"
            )
        named = self.json(_INDEX).get("weight_map")
        names = set(named.values()) if isinstance(named, dict) else set()
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise EngineError(f"{self.path / _INDEX}: weight_map does not name files of the folder")
        return [self.path / name for name in sorted(names)]
