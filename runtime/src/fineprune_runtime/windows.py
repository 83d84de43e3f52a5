"""How a question and its context share a window, and where in it no answer is: for any tokenizer.

numpy is imported where it is used: fineprune's command line imports this module at every start.
"""

from collections.abc import Callable, Sequence
from typing import Any

_STRIDE = 128


def question_limit(room: int, max_length: int, stride: int | None) -> tuple[int, int, int]:
    """The tokens that a question may have, the stride, and the longest stride that would do.

    `room`: what special tokens leave of `max_length`. A question takes half a window at most, and leaves
    to the context the stride and half of it again, so that windows advance by that. It may have 0: the
    stride is too long.
    """
    chosen = min(_STRIDE, max_length // 3) if stride is None else stride
    limit = min(room // 2, room - chosen - chosen // 2)
    least = max(1, room // 8)
    return limit if limit >= least else 0, chosen, max(0, (room - least) * 2 // 3)


def shortened(
    texts: Sequence[str], offsets: Callable[[list[str]], list[list[tuple[int, int]]]], limit: int
) -> tuple[list[str], int]:
    """The texts cut to `limit` tokens, and how many were; `offsets` has the characters of their tokens."""
    short = list(texts)
    cut = 0
    for index, spans in enumerate(offsets(short)):
        cut += len(spans) > limit
        keep = limit
        while len(spans) > limit:  # the end of a word that was cut may take more tokens than before
            short[index] = short[index][: spans[keep - 1][1]] if keep else ""
            (spans,) = offsets([short[index]])
            keep -= 1
    return short, cut


def anchors(ids: Any, special: Any, ends: Any, tokens: Sequence[int]) -> Any:
    """The position in its window of [CLS], else of the token that begins a text, else 0: (windows,).

    `ids` are the tokens of all windows, which end at `ends`; `special` says which were put around texts.
    `tokens` are the ids to look for; the last one found counts.
    """
    import numpy as np

    found = np.zeros(len(ends), dtype=np.int64)
    for token in tokens:
        places = np.flatnonzero(special & (ids == token))[::-1]
        window = np.searchsorted(ends, places, side="right")
        found[window] = places - (ends - np.diff(ends, prepend=0))[window]  # the first is written last
    return found
