"""Tokenize questions and their contexts into the windows that a model reads.

A context that is too long for the model is read in windows that overlap by the document stride
(Devlin et al., 2019, for SQuAD). Each window has the question and a part of the context.
"""

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from fineprune_runtime.errors import EngineError
from fineprune_runtime.tokens import Tokens
from fineprune_runtime.windows import anchors, question_limit, shortened

_log = logging.getLogger("fineprune_runtime")


class QuestionWindows(NamedTuple):
    """The windows of all questions; those of one question follow each other, as the tokenizer cut them."""

    encodings: list[Encoding]
    columns: dict[str, NDArray[Any]]
    """For each window: `question`, the index of its question, and `cls`, the position of [CLS]. For each
    token: `starts` and `ends` (exclusive), its characters in the context, -1 for a token outside the context.
    """

    def lengths(self) -> Any:
        """Return the number of tokens of each window, (windows,)."""
        return np.array([len(encoding) for encoding in self.encodings])

    def column(self, name: str) -> Any:
        """Return the column `question` or `cls`, (windows,)."""
        return self.columns[name]

    def tokens(self, name: str) -> Any:
        """Return the column `starts` or `ends`, (tokens,), one window after the other."""
        return self.columns[name]


def read_windows(
    questions: Sequence[str], contexts: Sequence[str], tokens: Tokens, max_length: int, stride: int | None
) -> QuestionWindows:
    """Tokenize questions with their contexts into windows of at most `max_length` tokens.

    Only the context is divided; every window has the question. A question that would leave the context too
    little room is cut.

    Args:
        questions: the questions.
        contexts: the context of each question.
        tokens: the tokenizer.
        max_length: tokens of a window.
        stride: tokens by which neighboring windows overlap; None: 128, or a third of `max_length` where that
            is less.

    Raises:
        EngineError: `max_length` is too short for `stride`.
    """
    limit, stride, longest = question_limit(max_length - tokens.special(pairs=True), max_length, stride)
    if not limit:
        raise EngineError(
            f"stride={stride}: too long for windows of max_length={max_length} tokens; "
            f"allowed: 0 to {longest}, or a greater max_length"
        )
    asked, cut = shortened(questions, tokens.offsets, limit)
    if cut:
        _log.warning("%d questions are longer than %d tokens and were cut", cut, limit)
    first, second = (contexts, asked) if tokens.context_first else (asked, contexts)
    strategy = "only_first" if tokens.context_first else "only_second"
    encodings, owners = [], []
    for row, encoding in enumerate(tokens.encode(first, second, max_length, strategy, stride)):
        encodings += [encoding, *encoding.overflowing]
        owners += [row] * (1 + len(encoding.overflowing))
    ends = np.cumsum([len(encoding) for encoding in encodings])
    sides = chain.from_iterable(encoding.sequence_ids for encoding in encodings)
    side = np.array([-1 if number is None else number for number in sides], np.int8)
    ids = np.array(list(chain.from_iterable(encoding.ids for encoding in encodings)))
    places = np.array(list(chain.from_iterable(encoding.offsets for encoding in encodings)), np.int32)
    places[side != (0 if tokens.context_first else 1)] = -1
    columns = {
        "question": np.array(owners),
        "cls": anchors(ids, side < 0, ends, tokens.anchors),
        "starts": places[:, 0],
        "ends": places[:, 1],
    }
    return QuestionWindows(encodings, columns)
