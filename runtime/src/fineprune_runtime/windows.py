"""Divide windows between question and context, and find the token for "no answer", for any tokenizer.

numpy is imported inside functions because fineprune's command line imports this module at every start.
"""

from collections.abc import Callable, Sequence
from typing import Any

_STRIDE = 128


def question_limit(room: int, max_length: int, stride: int | None) -> tuple[int, int, int]:
    """Return the maximum length of a question, the stride, and the longest possible stride, in tokens.

    A question takes at most half a window. It leaves the context at least 1.5 strides, and more than one, so
    that each window advances by at least half a stride, and by a token.

    Args:
        room: `max_length` without the special tokens.
        max_length: tokens of a window.
        stride: tokens by which neighboring windows overlap; None: 128, or a third of `max_length` where that
            is less.

    Returns:
        The maximum is 0 if the stride is too long.
    """
    chosen = min(_STRIDE, max_length // 3) if stride is None else stride
    limit = min(room // 2, room - chosen - max(1, chosen // 2))
    least = max(1, room // 8)
    return limit if limit >= least else 0, chosen, max(0, (room - least) * 2 // 3)


def shortened(
    texts: Sequence[str], offsets: Callable[[list[str]], list[list[tuple[int, int]]]], limit: int
) -> tuple[list[str], int]:
    """Return the texts cut to `limit` tokens, and the number of texts that were cut.

    Args:
        texts: the texts.
        offsets: returns the characters [start, end) of each token of the given texts.
        limit: tokens.
    """
    short = list(texts)
    cut = 0
    for index, spans in enumerate(offsets(short)):
        cut += len(spans) > limit
        keep = limit
        while len(spans) > limit:  # a word that was cut may take more tokens than before
            short[index] = short[index][: spans[keep - 1][1]] if keep else ""
            (spans,) = offsets([short[index]])
            keep -= 1
    return short, cut


def anchors(ids: Any, special: Any, ends: Any, tokens: Sequence[int]) -> Any:
    """Return the position of [CLS] in each window, else of the token that begins a text, else 0: (windows,).

    Args:
        ids: the token ids of all windows, one window after the other.
        special: whether each of them is a special token.
        ends: the index in `ids` at which each window ends (exclusive).
        tokens: the ids to look for; the last one that a window has counts.
    """
    import numpy as np

    positions = np.zeros(len(ends), dtype=np.int64)
    for token in tokens:
        places = np.flatnonzero(special & (ids == token))[::-1]
        window = np.searchsorted(ends, places, side="right")
        # `places` run backward, so the first one of a window is written last, and counts.
        positions[window] = places - (ends - np.diff(ends, prepend=0))[window]
    return positions
