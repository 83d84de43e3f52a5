"""Words as tokens: the token that begins each word, and long texts as several rows.

The words are joined and tokenized as running text, as the model was trained: tokenizers that see a
space as part of the word after it (RoBERTa's) split isolated words otherwise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fineprune.errors import FinepruneError
from fineprune_runtime.entities import begun_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def join(words: Sequence[str]) -> tuple[str, list[int]]:
    """Return the words with a space between them, and the character at which each begins."""
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    return " ".join(words), starts


def tokenize_words(
    texts: Sequence[str],
    starts: Sequence[Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> tuple[dict[str, list[list[int]]], list[tuple[int, list[int | None]]]]:
    """Tokenize texts whose words begin at `starts`, in rows of at most `max_length` tokens.

    Returns:
        The tokenizer's columns; and for each row, the number of its text and for each token the number of
        the word that it begins, None where it begins none.

    Raises:
        FinepruneError: a tokenizer that does not know the places of its tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise FinepruneError(
            f"{tokenizer.name_or_path}: this tokenizer does not say where in the text a token is; "
            "token classification needs a fast one"
        )
    columns: dict[str, Any] = dict(
        tokenizer(
            list(texts),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
    )
    offsets, sources = columns.pop("offset_mapping"), columns.pop("overflow_to_sample_mapping")
    return columns, begun_words(texts, starts, sources, offsets)
