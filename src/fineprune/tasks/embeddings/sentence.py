"""Read and write the settings of sentence-transformers beside a transformer."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fineprune._engine_errors import engine_errors
from fineprune.checkpoint.sentence_files import sentence_files_of
from fineprune.errors import FinepruneError
from fineprune_runtime.folder import Folder
from fineprune_runtime.modules import MODULES, SETTINGS, settings_name
from fineprune_runtime.pooling import read_pooling

_ABOUT = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Sentence:
    """What follows the transformer in a Sentence Transformers folder, and its files."""

    modes: tuple[str, ...]
    """Ways of pooling; the vector has one part for each."""

    normalize: bool
    size: int | None
    """Numbers that are kept of a vector, the first ones; None: all."""

    longest: int | None
    """Tokens of a text; None: as many as the transformer takes."""

    files: Mapping[str, str]
    """The text of the folder's files beside the transformer, by their relative path."""

    def width(self, model: Any) -> int:
        """Return the features of an embedding."""
        whole = len(self.modes) * int(model.config.hidden_size)
        return whole if self.size is None else min(whole, self.size)

    def write(self, folder: Path) -> None:
        """Write the files beside a transformer, so that sentence-transformers opens the folder."""
        for name, text in self.files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")


def is_sentence_folder(place: Path | str) -> bool:
    """Return whether a model's place, a folder or a name on the hub, is of sentence-transformers."""
    return sentence_files_of(local_folder(place)) is not None


def read_sentence(place: Path | str) -> Sentence:
    """Read the settings of a Sentence Transformers folder or of a name on the hub.

    Raises:
        FinepruneError: no such folder, or other modules than Transformer, Pooling and Normalize.
    """
    folder = local_folder(place)
    found = sentence_files_of(folder)
    if found is not None and found.root != folder:
        raise FinepruneError(
            f"{found.root}: its transformer is in {folder.name}; fineprune compact {found.root} OUT "
            "--format dense writes a copy with the transformer beside the modules, which can be trained"
        )
    if found is None:
        raise FinepruneError(
            f"{place}: has no {MODULES}, so nothing says how its tokens become an embedding; save the model "
            "with sentence-transformers: a Transformer, a Pooling, and a Normalize if wanted"
        )
    with engine_errors():
        opened = Folder(folder)
        pooling = read_pooling(opened)
        about, settings = (opened.json(name, needed=False) for name in (_ABOUT, settings_name(folder)))
    for name, value in (
        ("default_prompt_name", about.get("default_prompt_name")),
        ("do_lower_case", settings.get("do_lower_case")),
    ):
        if value:
            raise FinepruneError(
                f"{place}: {name} is {value!r}, and texts are read as they are; apply it to the texts, and "
                f"set {name} to null for the training"
            )
    longest = settings.get("max_seq_length")
    return Sentence(
        pooling.modes,
        pooling.normalize,
        pooling.size,
        longest if isinstance(longest, int) and longest > 0 else None,
        _files(folder),
    )


def local_folder(place: Path | str) -> Path:
    """Return a model's folder; of a name on the hub, the folder of its small files in the cache."""
    if isinstance(place, Path):
        return place
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=["*.json"]))
    except Exception:  # no network, no such model: opening it has said so, or will
        return Path(os.devnull)


def _files(folder: Path) -> dict[str, str]:
    modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    names = [MODULES, _ABOUT, *SETTINGS, *(f"{module['path']}/config.json" for module in modules[1:])]
    there = [name for name in names if os.path.isfile(folder / name)]
    return {name: (folder / name).read_text(encoding="utf-8") for name in there}
