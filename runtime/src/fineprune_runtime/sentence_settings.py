"""Read how a transformer of sentence-transformers reads texts: the file of `modules.SETTINGS` beside it."""

import os
from typing import Any, NamedTuple

from fineprune_runtime.cross_encoders import ABOUT
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.modules import MODULES, read_modules, settings_name

# Settings that change the tokens of a text, or the model. sentence-transformers 6 writes processing_kwargs
# and what is for queries and documents; it reads the others, under the names of older versions too.
_REFUSED = (
    "processing_kwargs",
    "processor_kwargs",
    "tokenizer_args",
    "config_kwargs",
    "config_args",
    "tokenizer_name_or_path",
    "query_length",
    "document_length",
    "query_expansion",
)
_IGNORED = "trust_remote_code"  # sentence-transformers takes it from no file
_OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}


class SentenceSettings(NamedTuple):
    """How texts become tokens."""

    length: int | None = None
    """Tokens to which texts are cut, whatever the tokenizer's own `model_max_length`; None: by that."""
    lower: bool = False
    """Whether texts are lowercased, between their special tokens."""


UNSET = SentenceSettings()


def cross_encoder_settings(folder: Folder) -> SentenceSettings:
    """Return how a cross-encoder reads texts; a folder without modules.json has no settings of its own.

    Raises:
        EngineError: it has other modules, a default prompt, or a setting that cannot be followed here.
    """
    if folder.json(ABOUT, needed=False).get("default_prompt_name") is not None:
        raise EngineError(
            f"{folder.path}: {ABOUT} has a default_prompt_name, and a prompt is not possible here: run this "
            "cross-encoder with sentence-transformers"
        )
    if not os.path.lexists(folder.path / MODULES):
        return UNSET
    names = [module.kind for module in read_modules(folder.path)]
    if names != ["Transformer"]:
        raise EngineError(
            f"{folder.path / MODULES}: has the modules {', '.join(names) or 'none'}; allowed is one "
            "Transformer, with the head in it: run this cross-encoder with sentence-transformers"
        )
    return read_sentence_settings(folder, "sequence-classification")


def read_sentence_settings(folder: Folder, task: str) -> SentenceSettings:
    """Return the settings of a folder's transformer.

    Args:
        folder: the folder.
        task: what the transformer must be for, in the words of sentence-transformers.

    Raises:
        EngineError: a setting is not allowed, or is one that cannot be followed here.
    """
    name = settings_name(folder.path)
    settings = folder.json(name, needed=False)
    kind = settings.get("transformer_task", task)
    if kind != task:
        raise EngineError(
            f"{folder.path}: transformer_task in {name} is {kind!r}, expected {task!r}: run this model with "
            "sentence-transformers"
        )
    for key in _REFUSED:
        if _says_something(settings.get(key)):
            raise EngineError(
                f"{folder.path}: {key} in {name} is {repr(settings[key])[:80]}, which is not possible here: "
                "remove it if the model was trained without, or run this model with sentence-transformers"
            )
    _check_output(folder, name, settings.get("modality_config"), _OUTPUTS[task])
    most = settings.get("max_seq_length")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise EngineError(f"{folder.path}: max_seq_length is {most!r}, expected a whole number, 1 or more")
    return SentenceSettings(most, bool(settings.get("do_lower_case")))


def _says_something(value: Any) -> bool:
    """Return whether a setting has a value, or an object one that is not empty."""
    if isinstance(value, dict):
        return any(key != _IGNORED and (not isinstance(entry, dict) or entry) for key, entry in value.items())
    return value is not None


def _check_output(folder: Folder, name: str, config: Any, expected: str) -> None:
    """Raise `EngineError` if another output of the transformer than the usual one is read for texts."""
    text = config.get("text") if isinstance(config, dict) else config
    asked = {"method": "forward", "method_output_name": expected}
    if text is not None and text != asked:
        raise EngineError(
            f"{folder.path}: modality_config in {name} says {repr(text)[:120]} of texts, expected {asked}: "
            "run this model with sentence-transformers"
        )
