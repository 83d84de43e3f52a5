"""The teacher's answers to the training data, computed once and stored on disk.

A teacher without dropout answers the same in each epoch. The file has the answers to each row without its
padding, and the key of everything that they depend on: with another key or a damaged file, they are computed
again. In training the collator adds them to the batch, padded as the batch is.
"""

import hashlib
import logging
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from fineprune._files import staged_file
from fineprune._messages import one_line
from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import Head
from fineprune.training.distillation.row_lengths import lengths_of

_log = logging.getLogger("fineprune")

ROW = "fineprune_row"
"""The column that numbers the rows."""

LOGITS = "fineprune_teacher_logits"
"""The entry of a batch that holds the teacher's answers."""

_BATCH = 64


class StoredLogits:
    """A collator that adds the teacher's answers to batches of numbered rows, once `load`ed."""

    def __init__(self, collate: Callable[[list[Any]], Any], head: Head) -> None:
        self.collate = collate
        self.head = head
        self._logits: Tensor | None = None
        self._ends: list[int] = []

    def __call__(self, rows: list[Any]) -> Any:
        numbers = [int(row[ROW]) for row in rows if ROW in row]
        batch = self.collate([{name: value for name, value in row.items() if name != ROW} for row in rows])
        if numbers and self._logits is not None:
            batch[LOGITS] = self._of(numbers, batch)
        return batch

    def load(
        self,
        folder: Path,
        rows: Any,
        model: Any,
        answer: Callable[[Mapping[str, Any]], Tensor],
        precision: str,
        progress: bool,
    ) -> Path:
        """Read the answers to `rows` (not numbered) from the file in `folder`, or compute and write them.

        Returns the file.
        """
        key = _key(model, rows, precision)
        path = folder / f"teacher-{key[:16]}.safetensors"
        stored = _read(path, key, len(rows))
        if stored is None:
            logits, lengths = self._compute(rows, answer, folder, progress)
            _write(path, key, logits, lengths)
            stored = logits, lengths
        self._logits, self._ends = stored[0], stored[1].cumsum(0).tolist()
        return path

    def _compute(
        self, rows: Any, answer: Callable[[Mapping[str, Any]], Tensor], folder: Path, progress: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the answers to all rows, (lines, classes), and the number of lines of each row."""
        widths = lengths_of(rows)
        # The longest first: a memory that does not suffice shows at once.
        order = sorted(range(len(widths)), key=widths.__getitem__, reverse=True)
        pieces: list[Any] = [None] * len(order)
        bar = tqdm(total=len(order), desc="teacher's answers", unit=" rows", disable=not progress)
        with bar, torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                numbers = order[start : start + _BATCH]
                batch = self.collate([rows[number] for number in numbers])
                answered = answer(batch).cpu()
                if start == 0:
                    lines = len(order) if self._per_row else sum(widths)
                    size = lines * answered.shape[-1] * 4
                    _log.info(
                        "the teacher's answers to %d rows take %s of disk", len(order), _megabytes(size)
                    )
                    bar.set_description(f"teacher's answers ({_megabytes(size)})")
                    _check_room(folder, size)
                counts = None if self._per_row else _mask(batch).cpu()
                for line, number in enumerate(numbers):
                    pieces[number] = (
                        answered[line : line + 1] if counts is None else answered[line][counts[line]]
                    )
                bar.update(len(numbers))
            logits, lengths = torch.cat(pieces), torch.tensor([len(piece) for piece in pieces])
        return logits.clone(), lengths

    def _of(self, numbers: Sequence[int], batch: Mapping[str, Any]) -> Tensor:
        assert self._logits is not None
        spans = [(self._ends[number - 1] if number else 0, self._ends[number]) for number in numbers]
        lines = torch.cat([self._logits[start:end] for start, end in spans])
        if self._per_row:
            return lines
        mask = _mask(batch)
        if mask.sum(1).tolist() != [end - start for start, end in spans]:
            raise FinepruneError(
                "the training data gives other rows than when the teacher answered them; leave the cache out"
            )
        padded = torch.zeros(*mask.shape, lines.shape[-1])
        padded[mask] = lines
        return padded

    @property
    def _per_row(self) -> bool:
        return self.head in ("texts", "values", "embeddings")


def numbered(rows: Any) -> Any:
    """Return the data set with the number of each row in the column `ROW`."""
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise FinepruneError(
            "teacher_logits: the training data has no length, so the answers cannot be stored; "
            "use a data set with rows, or leave teacher_logits out"
        )
    return rows.add_column(ROW, list(range(len(rows)))) if hasattr(rows, "add_column") else _Numbered(rows)


class _Numbered(Dataset[Any]):
    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self._rows[number], ROW: number}


def _mask(batch: Mapping[str, Any]) -> Tensor:
    """Return where the rows of a batch have tokens: bool, (rows, positions)."""
    mask: Tensor = (
        batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(batch["input_ids"])
    )
    return mask.bool()


def _key(model: Any, rows: Any, precision: str) -> str:
    """Return a digest of what the answers depend on: the teacher's weights and settings, and the rows."""
    digest = hashlib.sha256(f"1 {type(model).__name__} {precision}".encode())
    settings = model.config.to_dict() if hasattr(model, "config") else {}
    for name in ("_name_or_path", "transformers_version", "dtype", "problem_type"):  # models set the last
        settings.pop(name, None)
    digest.update(repr(sorted(settings.items(), key=str)).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    batches = rows.iter(1000) if hasattr(rows, "iter") else (rows[number] for number in range(len(rows)))
    for batch in batches:
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in batch.items()}
        digest.update(repr(sorted(plain.items())).encode())
    return digest.hexdigest()


def _read(path: Path, key: str, rows: int) -> tuple[Tensor, Tensor] | None:
    """Return logits and lengths of a file that is whole and has this key, else None."""
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("about")
            logits, lengths = file.get_tensor("logits"), file.get_tensor("lengths")
    except FileNotFoundError:
        return None
    except Exception as error:  # SafetensorError, OSError, … by damage
        _log.warning("%s: cannot be read (%s); the teacher answers again", path, one_line(error))
        return None
    if about != _about(key, logits, lengths) or len(lengths) != rows:
        _log.warning("%s: does not match its checksum or the data; the teacher answers again", path)
        return None
    return logits, lengths


def _write(path: Path, key: str, logits: Tensor, lengths: Tensor) -> None:
    """Write the file, whole or not at all."""
    try:
        with staged_file(path) as beside:
            save_file({"logits": logits, "lengths": lengths}, beside, {"about": _about(key, logits, lengths)})
    except Exception as error:  # OSError, or safetensors' own for a full disk
        raise _unwritable(path.parent, logits.nbytes, one_line(error)) from error


def _check_room(folder: Path, size: int) -> None:
    """Make the folder; raise `FinepruneError` before the teacher works for nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _unwritable(folder, size, one_line(error)) from error
    if free < size:
        raise _unwritable(folder, size, f"{_megabytes(free)} are free")


def _unwritable(folder: Path, size: int, why: str) -> FinepruneError:
    return FinepruneError(
        f"{folder}: the teacher's answers ({_megabytes(size)}) cannot be written there ({why}); "
        "make room, name another folder, or train without storing them"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _about(key: str, logits: Tensor, lengths: Tensor) -> str:
    checksum = zlib.crc32(lengths.numpy().tobytes(), zlib.crc32(logits.numpy().tobytes()))
    return f"{key} {checksum:08x}"
