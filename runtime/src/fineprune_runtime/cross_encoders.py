"""Read how a cross-encoder of sentence-transformers makes its score of a pair."""

from collections.abc import Mapping
from typing import Any

from fineprune_runtime.errors import EngineError

ABOUT = "config_sentence_transformers.json"
KEY = "sentence_transformers"
"""The setting of config.json in which versions 4 and 5 have `activation_fn`."""

_OLDEST = "sbert_ce_default_activation_function"
_ALLOWED = ("Sigmoid", "Identity")


def is_cross_encoder(config: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Return whether config.json, or config_sentence_transformers.json, is of a cross-encoder."""
    return about.get("model_type") == "CrossEncoder" or KEY in config or _OLDEST in config


def has_sigmoid(config: Mapping[str, Any], about: Mapping[str, Any], labels: int) -> bool:
    """Return whether a score is the sigmoid of its logit.

    Args:
        config: the content of config.json.
        about: that of config_sentence_transformers.json; {} without one.
        labels: the number of the model's outputs. Without a setting, a single one goes through the sigmoid.

    Raises:
        EngineError: the score is another function of the logit.
    """
    if not is_cross_encoder(config, about):
        return False
    older = config.get(KEY)
    given = [source.get("activation_fn") for source in (about, older) if isinstance(source, Mapping)]
    name = next((entry for entry in [*given, config.get(_OLDEST)] if entry is not None), None)
    if name is None:
        return labels == 1
    short = name.rpartition(".")[2] if isinstance(name, str) and name.startswith("torch.") else name
    if short not in _ALLOWED:
        raise EngineError(
            f"activation_fn of the cross-encoder is {name!r}; allowed are torch.nn.Sigmoid and "
            "torch.nn.Identity: run this model with sentence-transformers"
        )
    return short == "Sigmoid"
