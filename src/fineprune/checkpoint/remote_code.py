"""Find the class of a model; Python code that comes with a model runs only where the caller allows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fineprune.errors import FinepruneError
from fineprune_runtime import reading

_KERNELS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)


def config_of(source: Path | str) -> Any:
    """Return the content of the config.json of a folder, or of a model on the hub (`source` is a string).

    Raises whatever reading it raises; `model_files.explained` makes one line of it.
    """
    if isinstance(source, Path):
        return reading.read_json(source / "config.json")
    return transformers.PretrainedConfig.get_config_dict(source)[0]


def refuse_code(config: Mapping[str, Any], source: Any) -> None:
    """Raise where a model could be opened only with code of its own, or names kernels on the hub.

    Args:
        config: the content of its config.json.
        source: the folder, or the name on the hub.
    """
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise needs_code(source, config["auto_map"])
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    for section in sections:
        for key in _KERNELS:
            if "/" in str(section.get(key)):
                raise FinepruneError(
                    f"{source}: {key} {section[key]!r} of its config.json names code on the hub; remove the "
                    "entry, or pass trust_remote_code=True to run that code"
                )


def needs_code(source: Any, code: Any) -> FinepruneError:
    """Return the error for a model that comes with code of its own."""
    return FinepruneError(
        f"{source}: this model is opened by Python code that comes with it ({code}); read that code, then "
        "allow it by fineprune.load(..., trust_remote_code=True), or by model.trust_remote_code in a recipe"
    )


def class_named(config: Mapping[str, Any], name: str | None, source: Any, trust_remote_code: bool) -> Any:
    """Return what opens a model: its class in transformers, or the Auto class that runs the model's code.

    Args:
        config: the content of its config.json.
        name: the class that it names; None: it names none, and a model without a head is wanted.
        source: the folder, or the name on the hub.
        trust_remote_code: whether code that comes with the model may run.
    """
    kind = getattr(transformers, name or "AutoModel", None)
    codes = {str(auto): str(code) for auto, code in dict(config.get("auto_map") or {}).items()}
    codes = {auto: code for auto, code in codes.items() if auto.startswith("AutoModel")}
    if not trust_remote_code:
        refuse_code(config, source)
        if kind is None and codes:
            raise needs_code(source, codes)
    elif codes:
        named = [auto for auto, code in codes.items() if code.endswith(f".{name}")]
        return getattr(transformers, (named or sorted(codes))[0])
    if name is None:
        return kind
    if kind is None:
        raise FinepruneError(f"{source}: config.json: transformers has no {name!r}")
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise FinepruneError(f"{source}: config.json: {name!r} is no model")
    return kind
