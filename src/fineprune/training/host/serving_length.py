"""The length at which a served model cuts its texts: never less than what it was trained on."""

from typing import Any

from fineprune.training.distillation.heads import head_module
from fineprune.training.distillation.row_lengths import are_tokenized, lengths_of
from fineprune_runtime.results import MAX_LENGTH


def widen_serving_length(model: Any, rows: Any) -> None:
    """Raise the length that an earlier run wrote into a model's config to that of the longest training text.

    Nothing changes for a model without it, for shorter texts, and for rows that are not tokenized.
    """
    config = getattr(head_module(model), "config", None)
    told = getattr(config, MAX_LENGTH, None)
    if isinstance(told, int) and are_tokenized(rows):
        setattr(config, MAX_LENGTH, max([told, *lengths_of(rows)]))
