"""Record the masks of a pruning run for figures: `weights.npz`, small, taken before the masks are folded.

It holds a sample of single weights (the value before training and after it, the score, whether it is
kept) and, for every matrix, how the kept weights are spread: by row, by column, and as a coarse
picture. The saved model lacks the first, and reading the second from it would be slow.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fineprune._files import staged_file
from fineprune._messages import one_line
from fineprune.errors import FinepruneError
from fineprune.pruning.pruner import Pruner
from fineprune.pruning.targets import find_targets
from fineprune_runtime.reading import check_regular

_Key = TypeVar("_Key", bound=Hashable)

NAME = "weights.npz"
SAMPLE = 20_000
"""Number of weights drawn, over all pruned matrices; all weights of a smaller model."""

SIDE = 128
"""Rows and columns of a matrix's picture, at most."""

BINS = 200
_LIMIT = 64 * 2**20  # bytes of all arrays; those of a decoder of 7 billion weights take some 20 MB
_OUTSIDE = 0.0005  # the share on either side that the outermost bins take: a few weights are far larger
_KINDS = {  # of numpy, by the name of the array
    **dict.fromkeys(("shapes", "rows", "columns", "counts"), "i"),
    **dict.fromkeys(("edges", "before", "after", "score"), "f"),
    **{"names": "U", "pictures": "u", "kept": "b"},
}


@dataclass(frozen=True)
class MatrixSnapshot:
    """The positions of the kept weights in one matrix, summarized."""

    name: str
    shape: tuple[int, int]
    """Rows and columns; of a convolution, all dimensions but the first together."""

    rows: NDArray[np.int32]
    """Kept weights of each row."""

    columns: NDArray[np.int32]
    """Kept weights of each column."""

    picture: NDArray[np.uint8]
    """The density of each block of a grid of at most `SIDE` x `SIDE`, 255 for all kept."""

    @property
    def kept(self) -> int:
        """Weights that are kept."""
        return int(self.rows.sum())

    @property
    def density(self) -> float:
        """Kept / all."""
        return self.kept / (self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class Record:
    """The content of `weights.npz`. The arrays of the sample have one entry per weight."""

    matrices: tuple[MatrixSnapshot, ...]
    edges: NDArray[np.float32]
    """Borders of the histogram of remaining weights, `BINS` + 1; the outer bins count values beyond, too."""

    counts: NDArray[np.int64]
    """Remaining weights in each bin."""

    before: NDArray[np.float32]
    """The weight before training."""

    after: NDArray[np.float32]
    """The weight as it was trained, whether or not it is kept."""

    kept: NDArray[np.bool_]
    score: NDArray[np.float32] | None
    """Its learned score; None where the method learns none."""

    def save(self, folder: Path) -> None:
        """Write the file into the folder of a run, atomically."""
        arrays = {
            "names": np.array([matrix.name for matrix in self.matrices]),
            "shapes": np.array([matrix.shape for matrix in self.matrices], np.int64),
            "rows": np.concatenate([matrix.rows for matrix in self.matrices]),
            "columns": np.concatenate([matrix.columns for matrix in self.matrices]),
            "pictures": np.concatenate([matrix.picture.ravel() for matrix in self.matrices]),
            "edges": self.edges,
            "counts": self.counts,
            "before": self.before,
            "after": self.after,
            "kept": self.kept,
        }
        if self.score is not None:
            arrays["score"] = self.score
        with staged_file(folder / NAME) as beside, beside.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return the record in a run's folder; None if there is none.

        Raises:
            FinepruneError: if the file is damaged.
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            check_regular(path)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                unpacked = sum(entry.file_size for entry in stored.zip.infolist())
                if unpacked > _LIMIT:
                    raise ValueError(f"it unpacks to {unpacked:,} bytes, the most that is read is {_LIMIT:,}")
                for entry in stored.zip.infolist():
                    _check_size(stored.zip, entry)
                return cls._of({name: stored[name] for name in stored.files})
        except Exception as error:  # from zipfile, zlib or numpy, depending on the damage
            raise FinepruneError(f"{path}: cannot be read ({one_line(error)}); delete it") from error

    @classmethod
    def _of(cls, arrays: dict[str, NDArray[np.generic]]) -> Self:
        for name, kind in _KINDS.items():
            if name in arrays or name != "score":
                array = np.asarray(arrays[name])
                if array.dtype.kind != kind or array.ndim != (2 if name == "shapes" else 1):
                    raise ValueError(f"{name} holds something else")
        shapes = [(int(rows), int(columns)) for rows, columns in arrays["shapes"]]
        if any(rows < 1 or columns < 1 for rows, columns in shapes):
            raise ValueError("a matrix without weights")
        grids = [(min(SIDE, rows), min(SIDE, columns)) for rows, columns in shapes]
        rows = _split(arrays["rows"], [shape[0] for shape in shapes])
        columns = _split(arrays["columns"], [shape[1] for shape in shapes])
        pictures = _split(arrays["pictures"], [height * width for height, width in grids])
        matrices = [
            MatrixSnapshot(str(name), shape, row, column, picture.reshape(grid))
            for name, shape, row, column, picture, grid in zip(
                arrays["names"], shapes, rows, columns, pictures, grids, strict=True
            )
        ]
        if any(matrix.kept != matrix.columns.sum() for matrix in matrices):
            raise ValueError("rows and columns of a matrix that do not keep the same")
        rest = {name: arrays[name] for name in ("edges", "counts", "before", "after", "kept")}
        score = arrays.get("score")
        sample = [rest["before"], rest["after"], rest["kept"], *([] if score is None else [score])]
        if len({len(array) for array in sample}) > 1 or len(rest["edges"]) != len(rest["counts"]) + 1:
            raise ValueError("arrays of different lengths")
        return cls(tuple(matrices), score=score, **rest)  # type: ignore[arg-type]


class Recorder:
    """Draw the sample before training, and take the record after it."""

    def __init__(self, pruner: Pruner) -> None:
        sizes = [target.weight.numel() for target in pruner.targets]
        ends, total = np.cumsum(sizes), sum(sizes)
        drawn = np.arange(total)
        if total > SAMPLE:
            drawn = np.unique(np.random.default_rng(0).integers(0, total, SAMPLE))
        starts = np.searchsorted(drawn, ends)
        parts = np.split(drawn, starts[:-1])
        self._pruner = pruner
        self._places = [
            torch.from_numpy(part - (end - size)) for part, end, size in zip(parts, ends, sizes, strict=True)
        ]
        self._before = self._read([target.weight for target in pruner.targets])

    @torch.no_grad()
    def take(self) -> Record:
        """Return the record of the current state; call it before `finalize`."""
        targets = self._pruner.targets
        kept = [target.masked.kept() for target in targets]
        remaining = torch.cat(
            [target.fold()[mask].float().cpu() for target, mask in zip(targets, kept, strict=True)]
        )
        counts, edges = _histogram(remaining.numpy().astype(np.float64))
        learned = [
            target.masked.grid.expansion.expand(target.scores.detach())
            for target in targets
            if target.masked.scores is not None
        ]
        return Record(
            tuple(_matrix(target.name, mask) for target, mask in zip(targets, kept, strict=True)),
            edges.astype(np.float32),
            counts,
            self._before,
            self._read([target.weight for target in targets]),
            self._read(kept) > 0,
            self._read(learned) if learned else None,
        )

    @torch.no_grad()
    def _read(self, tensors: Sequence[Tensor]) -> NDArray[np.float32]:
        read = [
            tensor.detach().reshape(-1)[place.to(tensor.device)].float().cpu()
            for tensor, place in zip(tensors, self._places, strict=True)
        ]
        return torch.cat(read).numpy()


def counts_by(matrices: Iterable[MatrixSnapshot], key: Callable[[str], _Key]) -> dict[_Key, tuple[int, int]]:
    """Return (kept, all) weights summed over the matrices of each key, in the order of the matrices."""
    counts: dict[_Key, tuple[int, int]] = {}
    for matrix in matrices:
        kept, total = counts.get(key(matrix.name), (0, 0))
        counts[key(matrix.name)] = kept + matrix.kept, total + math.prod(matrix.shape)
    return counts


@torch.no_grad()
def matrices_of(model: nn.Module) -> tuple[MatrixSnapshot, ...]:
    """Return snapshots of the non-zero weights in the matrices that `prepare` would prune by default."""
    weights = {name: module.get_parameter("weight") for name, module in find_targets(model).items()}
    first = {id(weight): name for name, weight in reversed(weights.items())}  # shared ones once
    return tuple(_matrix(name, weights[name] != 0) for name in weights if first[id(weights[name])] == name)


def _check_size(archive: ZipFile, entry: ZipInfo) -> None:
    """Raise `ValueError` unless an array has the size that its header says: numpy takes that memory first."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        said = file.tell() + math.prod(shape) * dtype.itemsize
    if said != entry.file_size:
        raise ValueError(f"{entry.filename} holds {entry.file_size:,} bytes, its header says {said:,}")


def _histogram(remaining: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    remaining = remaining[np.isfinite(remaining)]  # a run that diverged has nan here
    low, high = 0.0, 1.0
    if len(remaining):
        low = np.quantile(remaining, _OUTSIDE, method="lower")
        high = np.quantile(remaining, 1 - _OUTSIDE, method="higher")
    return np.histogram(remaining.clip(low, high), BINS, (low, high))


def _matrix(name: str, mask: Tensor) -> MatrixSnapshot:
    kept = mask.reshape(mask.shape[0], -1).cpu().numpy()
    rows, columns = kept.shape
    down, across = _borders(rows), _borders(columns)
    blocks = np.add.reduceat(np.add.reduceat(kept, down, 0, dtype=np.int32), across, 1)
    sizes = np.outer(np.diff([*down, rows]), np.diff([*across, columns]))
    return MatrixSnapshot(
        name,
        (rows, columns),
        kept.sum(1, dtype=np.int32),
        kept.sum(0, dtype=np.int32),
        np.ceil(255 * blocks / sizes).astype(np.uint8),  # a single weight stays visible
    )


def _borders(length: int) -> NDArray[np.int64]:
    """Return the start of each block of one dimension."""
    count = min(SIDE, length)
    return np.arange(count) * length // count


def _split(joined: NDArray[np.generic], sizes: list[int]) -> list[NDArray[np.generic]]:
    if len(joined) != sum(sizes):
        raise ValueError("arrays of different lengths")
    return np.split(joined, np.cumsum(sizes)[:-1])
