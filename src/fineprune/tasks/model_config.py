"""Read and write the settings in a model's config that tasks need."""

import re
from collections.abc import Sequence
from typing import Any

from fineprune.errors import FinepruneError


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a config that name the classes by id."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def labels_of(model: Any) -> tuple[str, ...]:
    """Return the names of a trained model's classes by id."""
    return tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))


def is_unnamed(label: str) -> bool:
    """Return whether a label is the one that transformers gives a class without a name."""
    return re.fullmatch(r"LABEL_\d+", label) is not None


def is_regression(model: Any) -> bool:
    """Return whether a model of texts predicts a value instead of a class."""
    return problem_of(model) == "value"


def problem_of(model: Any) -> str:
    """Return what a model of texts predicts: a "class", several "labels", or a "value"."""
    from fineprune_runtime.classes import problem

    return problem(model.config.problem_type, model.config.num_labels)


def longest_input(model: Any) -> int | None:
    """Return the most tokens that a model takes; None where it does not say.

    Raises:
        FinepruneError: the model counts positions from its padding id, and that is negative.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if "position" in name and padding is not None and getattr(module, "num_embeddings", None) == limit:
            given = model.config.pad_token_id
            if given is not None and given < 0:
                raise FinepruneError(
                    f"pad_token_id in config.json is {given!r}: a {type(model).__name__} counts positions "
                    "from it; expected the id of the padding token"
                )
            return limit - int(padding) - 1  # RoBERTa and its kin count from behind the padding id
    return limit


def override_dropouts(config: Any, probability: float) -> dict[str, float]:
    """Set every dropout in the config of a model that is made next; return the values before, by name."""
    own = {
        name: value
        for name, value in vars(config).items()
        if "dropout" in name and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for name in own:
        setattr(config, name, probability)
    return own
