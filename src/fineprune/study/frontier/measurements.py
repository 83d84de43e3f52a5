"""Keep what was measured of a run in its folder, so that nothing is measured twice."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from fineprune._files import write_json
from fineprune._validation import is_number
from fineprune.errors import FinepruneError
from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import read_json

RECORD = "frontier.json"
"""The file in the folder of a run."""

_LOCK = ".frontier.lock"  # beside it, held while it is read and written


class Place(NamedTuple):
    """Where and on what was measured; only measurements of one place are compared."""

    machine: str
    """The name of the processor."""
    threads: int
    texts: str
    """A digest of the data, and the numbers of texts that are scored and timed."""
    reference: str
    """The content of the model that was timed in every round."""


@dataclass(frozen=True)
class Measurement:
    """One model in one runtime. If that failed, only the reason is known."""

    runtime: str
    place: Place
    content: str
    """A digest of the model, by `content_of`."""
    versions: dict[str, str]
    """Of the packages that the runtime consists of."""
    failed: str | None = None
    ratio: float = 0.0
    """The median over the rounds of the reference's time / this model's time in the same round."""
    low: float = 0.0
    high: float = 0.0
    """The ratio's quartiles."""
    reference_ms: float = 0.0
    """The reference's milliseconds a text in the same session."""
    score: float = 0.0
    """The main metric of the answers of this runtime, a fraction."""
    error: float = 0.0
    """The largest difference of its logits from torch's on the timed texts, over the largest of torch's."""
    wrong: bool = False
    """The error is larger than float32 arithmetic explains."""
    bytes: int = 0
    """The files that this runtime reads."""
    memory: float | None = None
    """MB of a process that loads the model and answers one text; None: this system does not tell."""
    scored: int = 0
    """Validation examples that the score is of."""
    available: int = 0
    """All validation examples."""
    tokens: float = 0.0
    """The mean length of the timed texts."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes a measurement the same one."""
        return self.runtime, self.place, self.content, tuple(sorted(self.versions.items()))


def read_measurements(run: Path) -> list[Measurement]:
    """Return what was measured of a run; of a damaged file, what can be read."""
    try:
        entries = read_json(run / RECORD)
    except (OSError, EngineError):
        return []
    return [found for entry in entries if (found := _read(entry))] if isinstance(entries, list) else []


def keep(run: Path, new: Iterable[Measurement]) -> None:
    """Add measurements to a run's file; they replace older ones of the same key.

    Raises:
        FinepruneError: the file cannot be written.
    """
    try:
        with FileLock(run / _LOCK):
            by_key = {entry.key: entry for entry in [*read_measurements(run), *new]}
            entries = [asdict(entry) | {"place": entry.place._asdict()} for entry in by_key.values()]
            write_json(run / RECORD, entries)
    except OSError as error:
        raise FinepruneError(f"{run}: cannot be written to ({error.strerror})") from error


def content_of(model: Path, max_length: int) -> str:
    """Return a digest of a model folder, of its weights, and of the length of its texts."""
    digest = hashlib.sha256(f"{max_length}".encode())
    for path in sorted(model.rglob("*.json")):
        digest.update(f"{path.relative_to(model)} ".encode() + path.read_bytes())
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]


def texts_of(task: dict[str, Any], scored: int, timed: int) -> str:
    """Return a digest of the validation data of a recipe's task, and of the numbers of texts.

    Raises:
        FinepruneError: the file of the data cannot be read.
    """
    columns = [name for name in ("words", "tags") if task.get(name) is not None]
    names = ("kind", "hub", "subset", "validation_split", "text", "label", *columns)
    said = [str(task.get(name)) for name in names]
    digest = hashlib.sha256("\n".join([*said, f"{scored} {timed}"]).encode())
    if task.get("hub") is None:
        file = task.get("validation") or task.get("train")  # of which a part is held out
        path = Path(str(file)).expanduser()
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise FinepruneError(
                f"{path}: the validation data of the runs cannot be read ({error.strerror}); the path is "
                f"relative to the folder that the runs were started in, and this is {os.getcwd()}"
            ) from error
    return digest.hexdigest()[:16]


def _read(entry: Any) -> Measurement | None:
    """Return a measurement; None if the entry is of another form."""
    try:
        found = Measurement(**entry | {"place": Place(**entry["place"])})
    except (TypeError, KeyError):
        return None
    numbers = [getattr(found, field.name) for field in fields(found) if field.type in (float, int)]
    texts = (found.runtime, found.content, found.place.machine, found.place.texts, found.place.reference)
    right = (
        all(map(is_number, numbers))
        and all(isinstance(text, str) for text in texts)
        and isinstance(found.place.threads, int)
        and isinstance(found.versions, dict)
        and all(isinstance(version, str) for version in found.versions.values())
        and isinstance(found.failed, str | None)
        and (found.memory is None or is_number(found.memory))
        and (found.failed is not None or (found.ratio > 0 and found.reference_ms > 0))
    )
    return found if right else None
