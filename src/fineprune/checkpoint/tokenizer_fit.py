"""Check that a tokenizer has its vocabulary, and nothing that lies beyond the tables of its model."""

import os
from pathlib import Path
from typing import Any

from fineprune.checkpoint.model_files import explained
from fineprune.errors import FinepruneError


def check_tokenizer(model: Any, tokenizer: Any, source: Any) -> None:
    """Raise where a tokenizer has tokens, or gives texts types, that the model's embedding tables lack.

    Without the files of its vocabulary, transformers makes one that knows special tokens only.

    Args:
        model: a model of texts; of any other there is nothing to check.
        tokenizer: the tokenizer that goes with it.
        source: where both were found, for messages.

    Raises:
        FinepruneError: the tokenizer does not fit, has no vocabulary, or breaks on any text.
    """
    place, files = getattr(tokenizer, "name_or_path", ""), getattr(tokenizer, "vocab_files_names", {})
    there = [path for name in (*files.values(), "*.model") for path in Path(place).glob(name)]
    if place and os.path.isdir(place) and files and not any(map(os.path.isfile, there)):
        raise FinepruneError(
            f"{place}: its tokenizer has no vocabulary ({' or '.join(sorted(set(files.values())))} is "
            "missing); fetch the model again, or save its tokenizer there"
        )
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (NotImplementedError, AttributeError):  # a model without words
        rows = None
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    if isinstance(rows, int) and vocabulary:
        highest, token = max((index, token) for token, index in vocabulary.items())
        if highest >= rows:
            raise FinepruneError(
                f"{source}: the tokenizer does not fit the model: token {token!r} has the id {highest}, the "
                f"model's table ends at {rows - 1}; save the model's own tokenizer there, or the model after "
                "model.resize_token_embeddings(len(tokenizer))"
            )
    if not isinstance(getattr(tokenizer, "model_max_length", 0), int | float):
        raise FinepruneError(
            f"{source}: model_max_length of tokenizer_config.json is {tokenizer.model_max_length!r}; "
            "it must be a number"
        )
    types = getattr(model.config, "type_vocab_size", None)
    if not isinstance(types, int) or types < 1 or "token_type_ids" not in tokenizer.model_input_names:
        return
    pairs = getattr(model.config, "fineprune_text_pairs", None) is True
    pairs = pairs or type(model).__name__.endswith("ForQuestionAnswering")
    given = _types(tokenizer, pairs, source)
    if given and max(given) >= types:
        what = "the second text of a pair" if pairs else "a text"
        raise FinepruneError(
            f"{source}: the tokenizer does not fit the model: it gives {what} the type {max(given)}, and the "
            f"model's table ends at {types - 1}; save the model's own tokenizer there"
        )


def _types(tokenizer: Any, pairs: bool, source: Any) -> list[int]:
    """Return the token types of a short text; [] where the tokenizer cannot encode it."""
    with explained(f"{source}: the tokenizer is broken"):
        try:
            return list(tokenizer("a", "a" if pairs else None)["token_type_ids"])
        except Exception:  # it may know other texts only
            return []
