"""Read modules.json, the list of the modules of a Sentence Transformers folder."""

from pathlib import Path
from typing import Any, NamedTuple

from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import read_json

MODULES = "modules.json"
SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where a transformer's length and lower-casing are: the first of these that is there."""

_AGAIN = "save or fetch it again"


class Module(NamedTuple):
    """One module."""

    kind: str
    """The name of its class; the whole type if that is not a class of sentence-transformers."""
    path: str
    """The name of its folder; "" for a transformer that is beside modules.json."""
    entry: dict[str, Any]
    """Its whole entry in modules.json."""


def read_modules(folder: Path) -> list[Module]:
    """Return the modules of a folder, in the order in which they run.

    Raises:
        EngineError: modules.json is missing or damaged, or names a place outside the folder.
    """
    file = folder / MODULES
    try:
        entries = read_json(file)
    except OSError as error:
        raise EngineError(f"{file}: cannot be read ({error.strerror}); {_AGAIN}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise EngineError(f"{file}: expected a list of modules; {_AGAIN}")
    return [
        Module(_kind(file, entry), _path(file, entry, first=not number), entry)
        for number, entry in enumerate(entries)
    ]


def settings_name(folder: Path) -> str:
    """Return the name of the file of `SETTINGS` that a folder has; the first where it has none."""
    return next((name for name in SETTINGS if (folder / name).is_file()), SETTINGS[0])


def _kind(file: Path, entry: dict[str, Any]) -> str:
    kind = entry.get("type")
    if not isinstance(kind, str):
        raise EngineError(f"{file}: a module has the type {kind!r}; {_AGAIN}")
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def _path(file: Path, entry: dict[str, Any], first: bool) -> str:
    place = entry.get("path")
    if first and not place:
        return ""
    # isprintable: half a surrogate pair is no file name
    named = isinstance(place, str) and place not in ("", ".", "..") and place.isprintable()
    if not named or Path(str(place)).name != place:
        raise EngineError(f"{file}: {place!r} is not the name of a folder in it")
    return str(place)
