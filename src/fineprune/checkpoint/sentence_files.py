"""Keep the files of Sentence Transformers that are around a transformer: its pooling, prompts and lengths."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._engine_errors import engine_errors
from fineprune._files import write_json
from fineprune.checkpoint.model_files import read_json
from fineprune.errors import FinepruneError
from fineprune_runtime.cross_encoders import ABOUT
from fineprune_runtime.modules import MODULES, Module, read_modules

CROSS = "CrossEncoder"
_LENGTHS = "sentence_*_config.json"  # older versions have the name of the architecture in it


class SentenceFiles(NamedTuple):
    """The files of a Sentence Transformers folder without the transformer's own."""

    root: Path
    """The folder with modules.json."""
    modules: list[Module]
    kind: str
    """The class that opens it: "SentenceTransformer", "CrossEncoder", …"""

    about: dict[str, Any]
    """The content of config_sentence_transformers.json."""

    @property
    def transformer(self) -> Path:
        """The folder of the transformer: the root, or one in it."""
        return self.root / self.modules[0].path if self.modules else self.root

    @property
    def pools(self) -> bool:
        """Whether the outputs of the transformer's body are pooled, so that it has no head."""
        return [module.kind for module in self.modules[:2]] == ["Transformer", "Pooling"]

    def copy(self, folder: Path) -> None:
        """Copy the files into a folder that has the transformer at its root.

        Raises:
            FinepruneError: there are other modules than fineprune keeps, or a file is missing or damaged.
        """
        check_modules([module.kind for module in self.modules], self.kind, self.root / MODULES)
        files = [(self.root / ABOUT, ABOUT)]
        files += [(path, path.name) for path in sorted(self.transformer.glob(_LENGTHS))]
        for module in self.modules[1:]:
            name = f"{module.path}/config.json"
            if module.kind == "Pooling" and not (self.root / name).is_file():
                raise FinepruneError(f"{self.root}: has no {name}; copy it from the model's folder")
            files.append((self.root / name, name))
        for source, name in files:
            if os.path.lexists(source):
                read_json(source)  # refuses a device, a pipe and what is no JSON
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source, folder / name)
        first, *others = (module.entry for module in self.modules)
        write_json(folder / MODULES, [first | {"path": ""}, *others])


def read_sentence_files(root: Path) -> SentenceFiles | None:
    """Return the files of a Sentence Transformers folder; None for a folder without modules.json.

    Raises:
        FinepruneError: modules.json or config_sentence_transformers.json is damaged, or names a place outside
            the folder.
    """
    if not os.path.lexists(root / MODULES):
        return None
    with engine_errors():
        modules = read_modules(root)
    about = read_json(root / ABOUT) if os.path.lexists(root / ABOUT) else {}
    kind = about.get("model_type", "SentenceTransformer") if isinstance(about, dict) else None
    if not isinstance(kind, str):
        raise FinepruneError(f"{root / ABOUT}: names no class of models; save or fetch it again")
    return SentenceFiles(root, modules, kind, about)


def sentence_files_of(place: Path) -> SentenceFiles | None:
    """Return the files around a transformer's folder, beside it or above it; None where there are none."""
    for root in (place, place.parent):
        files = read_sentence_files(root)
        if files is not None and files.transformer == place:
            return files
    return None


def check_modules(kinds: Sequence[str], kind: str, source: object) -> None:
    """Raise where a model has other modules than a transformer, its pooling and a norm.

    Args:
        kinds: the names of the modules' classes.
        kind: the class of the model.
        source: for messages.

    Raises:
        FinepruneError: it is no SentenceTransformer or CrossEncoder, or has other modules.
    """
    if kind == CROSS:
        wrong, allowed = list(kinds) != ["Transformer"], "one Transformer, with the head in it"
    elif kind == "SentenceTransformer":
        wrong = list(kinds[:2]) != ["Transformer", "Pooling"] or bool(set(kinds[2:]) - {"Normalize"})
        allowed = "one Transformer, one Pooling and then Normalize"
    else:
        raise FinepruneError(f"{source}: is a {kind}, allowed are SentenceTransformer and {CROSS}")
    if wrong:
        raise FinepruneError(
            f"{source}: has the modules {', '.join(kinds) or 'none'}; allowed are {allowed}: save the "
            "transformer alone, model.transformers_model, and keep the other modules yourself"
        )
