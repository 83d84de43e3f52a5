"""Words as tokens: where each word begins, and a text that is too long as several rows.

The words are joined and tokenized as running text, as the model was trained: tokenizers that see a
space as part of the word after it (RoBERTa's) split words that stand alone otherwise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fineprune.errors import FinepruneError
from fineprune_runtime.entities import begun_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OURS = ("offset_mapping", "overflow_to_sample_mapping")


def join(words: Sequence[str]) -> tuple[str, list[int]]:
    """The words with a space between them, and where each begins."""
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    return " ".join(words), starts


def windows(
    texts: Sequence[str],
    starts: Sequence[Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> tuple[dict[str, list[list[int]]], list[tuple[int, list[int | None]]]]:
    """Tokenize texts whose words begin at `starts`, in rows of at most `max_length` tokens.

    Returns the tokenizer's columns and, for each row, the number of its text and for each token
    the number of the word that it begins; None where it begins none.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise FinepruneError(
            f"{tokenizer.name_or_path}: this tokenizer does not say where in the text a token is; "
            "token classification needs a fast one"
        )
    encoded: dict[str, Any] = dict(
        tokenizer(
            list(texts),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
    )
    offsets, sources = (encoded.pop(name) for name in _OURS)
    return encoded, begun_words(texts, starts, sources, offsets)
