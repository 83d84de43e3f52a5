"""Read a model folder without torch: config.json and the weights in its safetensors files.

Sparse matrices stay sparse, and embedding tables stay in the type they are stored in; everything else becomes
float32. When a folder that fineprune packed is opened, every byte is checked against its manifest.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime import codec, manifest
from fineprune_runtime.architectures import misfit
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Matrix
from fineprune_runtime.reading import check_regular, read_json

Vector = NDArray[np.float32]

SHAPED_VERSION = 2
"""The version of `quantization_config` where layers have the shapes of the file; else it is the codec's."""

_METHOD = "fineprune"
_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_AGAIN = "save or fetch the model again"
_CHUNK = 4096  # rows


class Table(NamedTuple):
    """An embedding table, as small in memory as in the file, except that an int4 level takes a whole byte."""

    rows: NDArray[Any]
    """(stored, width): float32, float16, or int8 levels."""
    scales: Vector | None = None
    """(stored,), the factors of the levels; None where the rows are not levels."""
    places: NDArray[np.int64] | None = None
    """(stored,): the ids of the stored rows, ascending, the others being 0; None: every row is stored."""
    total: int | None = None
    """The number of ids where `places` is given."""

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows of `ids`, an array of any shape, as float32 (..., width)."""
        at = ids
        if self.places is not None:
            at = np.minimum(np.searchsorted(self.places, ids), len(self.places) - 1)
        rows: NDArray[np.float32] = self.rows[at].astype(np.float32)
        if self.scales is not None:
            rows *= self.scales[at][..., None]
        if self.places is not None:
            rows[self.places[at] != ids] = 0
        return rows

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self.rows) if self.total is None else self.total

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        parts = (self.rows, self.scales, self.places)
        return sum(part.nbytes for part in parts if part is not None)


class Folder:
    """An opened model folder: its `path`, its `config`, and its weights by name.

    `packed` says whether fineprune wrote it, so that it holds nothing but the model; `shrunk` whether its
    layers may have fewer heads and neurons than config.json says.

    Raises:
        EngineError: there is no such folder, or one of its files is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike):
            raise EngineError(f"folder is {path!r}, expected the path of a model's folder")
        self.path = Path(path)
        if not os.path.isdir(self.path):  # unlike Path.is_dir, False for a name that is too long
            raise EngineError(f"{path}: no such folder; name the folder of a model")
        self.config = self.json("config.json")
        files = self._files()
        for file in files:
            with _reading(file):
                check_regular(file)
        asked = self.config.get("quantization_config")
        self.packed = isinstance(asked, Mapping) and asked.get("quant_method") == _METHOD
        if asked is not None and not self.packed:
            raise EngineError(f"{path}: its weights are quantized by another program than {_METHOD}: {asked}")
        self.shrunk = isinstance(asked, Mapping) and _has_own_shapes(self.path / "config.json", asked)
        if self.packed:
            manifest.verify_files(self.path, manifest.verify(files))
        self._read: set[str] = set()
        self._tensors = {tensor.name: (file, tensor) for file in files for tensor in manifest.read(file)[1]}

    def json(self, name: str, needed: bool = True) -> dict[str, Any]:
        """Return the object in a JSON file of the folder; {} if the file is absent and not `needed`."""
        file = self.path / name
        if not os.path.lexists(file):
            if not needed:
                return {}
            inner = self.path / "model"  # where a run keeps its model
            there = f"; name {inner}, which is one" if os.path.isfile(inner / name) else ""
            raise EngineError(f"{self.path}: has no {name}, so it is no model that can run here{there}")
        with _reading(file):
            content = read_json(file)
        if not isinstance(content, dict):
            raise EngineError(f"{file}: holds {type(content).__name__}, expected an object")
        return content

    def __contains__(self, name: str) -> bool:
        """Return whether the folder has a weight of that name."""
        return name in self._tensors

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """Return a weight of `shape` (outputs, inputs) by its non-zero elements.

        Of a low-rank layer, whose two thin matrices are in the files, it is their product.
        """
        if (pair := self._pair(name)) is not None:
            second, first = (self.dense(each, cast(tuple[int, int], self.shape(each))) for each in pair)
            product = Matrix.from_dense(second @ first)
            if product.shape != shape:
                raise misfit(name, product.shape, shape)
            return product
        file, tensor = self._tensor(name)
        if not tensor.is_blob:
            return Matrix.from_dense(self._floats(file, tensor, shape))
        with _unpacking(file, tensor):
            return Matrix.from_blob(tensor.data, shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight, also of a packed one, or of the product of a low-rank layer's two."""
        if (pair := self._pair(name)) is not None:
            second, first = map(self.shape, pair)
            if len(second) != 2 or len(first) != 2 or second[1] != first[0]:
                raise EngineError(
                    f"{self.path}: {pair[1]} {first} and {pair[0]} {second} have no product; {_AGAIN}"
                )
            return second[0], first[1]
        file, tensor = self._tensor(name)
        if not tensor.is_blob:
            return tensor.shape
        with _unpacking(file, tensor):
            return codec.read_header(tensor.data).shape

    def dense(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a weight of `shape` as a dense float32 array."""
        file, tensor = self._tensor(name)
        if not tensor.is_blob:
            values: NDArray[np.float32] = self._floats(file, tensor, shape).astype(np.float32, copy=False)
        elif len(shape) < 2:  # never packed, so that no vector is longer than the file
            raise EngineError(f"{file}: {name} is packed, expected numbers; {_AGAIN}")
        else:
            with _unpacking(file, tensor):
                values = codec.decode(tensor.data, shape)
        _check_finite(file, name, values)
        return values

    def vector(self, name: str) -> Vector:
        """Return a bias, or the weight or bias of a norm: 1-d, of the size that it has in the file."""
        _, tensor = self._tensor(name)
        size = tensor.shape[:1] or (1,)  # a number, and any further dimension, is then refused as a misfit
        return self.dense(name, size)

    def table(self, name: str, shape: tuple[int, int]) -> Table:
        """Return an embedding table of `shape` (rows, width)."""
        file, tensor = self._tensor(name)
        if not tensor.is_blob:
            table = Table(self._floats(file, tensor, shape))
        else:
            with _unpacking(file, tensor):
                # Not codec.unpack: it lists positions even where every element is stored, 8 bytes for each.
                table = _table(codec.take_apart(tensor.data, shape), shape)
        _check_finite(file, name, table.rows)
        return table

    def unused(self, prefix: str) -> list[str]:
        """Return the weights whose names begin with `prefix` and that nobody has asked for, sorted."""
        return sorted(name for name in self._tensors if name.startswith(prefix) and name not in self._read)

    def _pair(self, name: str) -> tuple[str, str] | None:
        """Return the names of the second and first thin matrix of a low-rank layer; None: it is none."""
        start = name.removesuffix("weight")
        pair = f"{start}1.weight", f"{start}0.weight"
        return None if name in self._tensors or not set(pair) <= set(self._tensors) else pair

    def _tensor(self, name: str) -> tuple[Path, manifest.Stored]:
        of_pair = f"{name.removesuffix('bias')}1.bias"  # the bias of a low-rank layer is the second one's
        if name.endswith(".bias") and name not in self._tensors and of_pair in self._tensors:
            name = of_pair
        if name not in self._tensors:
            raise EngineError(
                f"{self.path}: its weights lack {name}; they are not of the model in config.json"
            )
        self._read.add(name)
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
        if os.path.lexists(self.path / _FILE):
            return [self.path / _FILE]
        if not os.path.lexists(self.path / _INDEX):
            raise EngineError(
                f"{self.path}: has no {_FILE}; save the model as safetensors, and of a delta the whole model"
            )
        named = self.json(_INDEX).get("weight_map")
        names = list(named.values()) if isinstance(named, dict) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise EngineError(f"{self.path / _INDEX}: weight_map does not name files of the folder")
        return [self.path / name for name in sorted(set(names))]


def _has_own_shapes(file: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether layers have the shapes of the file, by `quantization_config`, of a version read here."""
    shapes, version = settings.get("shapes"), settings.get("version")
    expected = codec.VERSION if shapes is None else SHAPED_VERSION
    if version not in (None, expected) or shapes not in (None, "file"):
        raise EngineError(
            f"{file}: format version {version!r} with shapes {shapes!r}; this fineprune reads version "
            f"{expected}: upgrade it"
        )
    return shapes is not None


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise an `EngineError` for a file that cannot be opened, or whose name cannot be a file's."""
    try:
        yield
    except EngineError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte or a lone surrogate in its name
        reason = getattr(error, "strerror", None) or error
        raise EngineError(f"{repr(str(file))[:200]}: cannot be read ({reason}); {_AGAIN}") from error


@contextmanager
def _unpacking(file: Path, tensor: manifest.Stored) -> Iterator[None]:
    """Raise an `EngineError` for a packed weight that is damaged, or is no weight but a mask."""
    try:
        if codec.read_header(tensor.data).values == "mask":
            raise codec.CodecError(f"is a mask, expected numbers; {_AGAIN}")
        yield
    except codec.CodecError as error:
        raise EngineError(f"{file}: {tensor.name}: {error}") from error


def _table(packed: codec.Packed, shape: tuple[int, int]) -> Table:
    """Return an unpacked table; of one with few rows, only these rows."""
    values, (count, width) = packed.values, shape
    scales = packed.scales if len(packed.scales) else None
    if packed.header.values == "float16":  # exact, because the values were unpacked from float16
        values = values.astype(np.float16)
    if packed.header.kept == count * width:
        return Table(values.reshape(shape), scales)
    places = np.unique(packed.positions // width)
    if 2 * len(places) >= count:
        places = np.arange(count)
    elif not len(places):
        places = np.zeros(1, np.int64)
    rows = np.zeros((len(places), width), values.dtype)
    rows[np.searchsorted(places, packed.positions // width), packed.positions % width] = values
    if len(places) == count:
        return Table(rows, scales)
    return Table(rows, None if scales is None else scales[places], places, count)


def _check_finite(file: Path, name: str, values: NDArray[Any]) -> None:
    """Raise `EngineError` if a weight holds NaN or infinity."""
    if values.dtype.kind != "f":
        return
    for start in range(0, len(values), _CHUNK):  # in parts, because the check takes memory
        if not np.isfinite(values[start : start + _CHUNK]).all():
            raise EngineError(f"{file}: {name} holds NaN or infinity; its training diverged, or {_AGAIN}")
