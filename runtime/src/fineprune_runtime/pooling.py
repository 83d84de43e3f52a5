"""Turn the tokens of a text into one vector, as the modules of sentence-transformers beside a model say."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.architectures import whole
from fineprune_runtime.cross_encoders import ABOUT
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.modules import MODULES, Module, read_modules

Floats = NDArray[np.float32]

# By the names of older versions, which have a flag for each, in the order of their parts of the vector.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLED = ("cls", "max", "mean", "mean_sqrt_len_tokens")
_LEAST_NORM = 1e-12  # torch's normalize divides by at least this
_RUN = (
    "allowed are one Transformer, one Pooling and then Normalize: run this model with sentence-transformers"
)


class Pooling(NamedTuple):
    """What follows the transformer: pooling, a norm of 1 if wanted, and a cut to the first numbers."""

    modes: tuple[str, ...]
    """Of `_POOLED`; the vector has one part for each."""
    normalize: bool
    with_prompt: bool
    """Whether the tokens of a prompt count."""
    size: int | None = None
    """How many of a vector's numbers are kept, the first ones; None: all."""

    def width(self, hidden: int) -> int:
        """Return the numbers of a vector, of a model with `hidden` features."""
        whole_size = len(self.modes) * hidden
        return whole_size if self.size is None else min(whole_size, self.size)

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes, as of a `Head`: it has no weights."""
        return 0

    def __call__(self, hidden: Floats, mask: Any) -> Floats:
        """Return the vectors of texts, (batch, `width`), from the output of the encoder.

        Each text is pooled without padding, so that its vector does not depend on the batch.
        """
        texts = hidden if mask is None else [row[kept != 0] for row, kept in zip(hidden, mask, strict=True)]
        vectors = [self._vector(text)[: self.size] for text in texts]
        return np.array(vectors, np.float32).reshape(len(vectors), self.width(hidden.shape[-1]))

    def _vector(self, tokens: Floats) -> Floats:
        if not len(tokens):
            return np.zeros(len(self.modes) * tokens.shape[1], np.float32)
        parts: list[Floats] = []
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the vector
            for mode in self.modes:
                if mode == "cls":
                    parts.append(tokens[0])
                elif mode == "max":
                    parts.append(tokens.max(axis=0))
                else:
                    count = len(tokens) if mode == "mean" else np.sqrt(len(tokens))
                    parts.append(tokens.sum(axis=0) / np.float32(count))
            vector = np.concatenate(parts)
            if self.normalize:
                vector /= max(np.sqrt(vector.dot(vector)), np.float32(_LEAST_NORM))
        return vector


def read_pooling(folder: Folder) -> Pooling:
    """Return the pooling of a model folder by its modules.json, the folders that it names, and `ABOUT`.

    Raises:
        EngineError: a file is missing or damaged, or asks for more than pooling, a norm and a size.
    """
    file, modules = folder.path / MODULES, read_modules(folder.path)
    names = [module.kind for module in modules]
    if names[:2] != ["Transformer", "Pooling"] or set(names[2:]) - {"Normalize"}:
        raise EngineError(f"{file}: has the modules {', '.join(names) or 'none'}; {_RUN}")
    if modules[0].path:
        raise EngineError(
            f"{file}: the transformer is in {modules[0].path!r}, expected beside it: `fineprune compact` "
            "writes such a folder"
        )
    for module in modules[2:]:
        known = _settings(folder, module, needed=False).get("module_input_name", "sentence_embedding")
        if known != "sentence_embedding":
            raise EngineError(f"{file}: Normalize of {known!r} cannot be run; {_RUN}")
    settings = _settings(folder, modules[1], needed=True)
    return Pooling(
        _modes(folder, modules[1].path, settings),
        len(modules) > 2,
        settings.get("include_prompt") is not False,
        _size(folder),
    )


def _size(folder: Folder) -> int | None:
    """Return `truncate_dim`: sentence-transformers cuts after the norm, and makes no new one."""
    size = folder.json(ABOUT, needed=False).get("truncate_dim")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise EngineError(
            f"{folder.path}: truncate_dim in {ABOUT} is {size!r}, expected a whole number, 1 or more, or null"
        )
    return size


def _settings(folder: Folder, module: Module, needed: bool) -> dict[str, Any]:
    name = f"{module.path}/config.json"
    if needed and not (folder.path / name).exists():
        raise EngineError(
            f"{folder.path}: has no {name}, which says how tokens become a vector; copy it from the model's "
            "folder"
        )
    return folder.json(name, needed=False)


def _modes(folder: Folder, place: str, settings: dict[str, Any]) -> tuple[str, ...]:
    """Return the modes of the pooling, in the order of their parts."""
    file = folder.path / place / "config.json"
    given = settings.get("pooling_mode")
    if given is None:
        given = [mode for flag, mode in _MODES.items() if settings.get(flag) is True]
    modes = tuple(given) if isinstance(given, list) else (given,)
    if not modes or any(mode not in _POOLED for mode in modes):
        raise EngineError(f"{file}: pools by {given!r}; allowed are {', '.join(_POOLED)}")
    hidden = whole(folder.config, "hidden_size")
    width = settings.get("embedding_dimension", settings.get("word_embedding_dimension", hidden))
    if width != hidden:
        raise EngineError(f"{file}: is of {width!r} features, and the model has {hidden}")
    return modes
