"""From questions to windows: what a model reads of a context at a time.

A context that is too long for the model is read in windows that overlap by the document stride
(Devlin et al., 2019, for SQuAD): each is the question with a stretch of the context.
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
    """The windows of all questions, those of a question together and in the order of its context."""

    encodings: list[Encoding]
    columns: dict[str, NDArray[Any]]
    """For each window `question`, its row, and `cls`, the position of [CLS]; for each token `starts` and
    `ends`, its characters in the context, -1 for a token that is not of the context.
    """

    def lengths(self) -> Any:
        """Tokens of each window."""
        return np.array([len(encoding) for encoding in self.encodings])

    def column(self, name: str) -> Any:
        """A number for each window."""
        return self.columns[name]

    def tokens(self, name: str) -> Any:
        """A number for each token, all windows one after the other."""
        return self.columns[name]


def read_windows(
    questions: Sequence[str], contexts: Sequence[str], tokens: Tokens, max_length: int, stride: int | None
) -> QuestionWindows:
    """Tokenize questions with their contexts into windows of at most `max_length` tokens.

    `stride`: tokens by which neighboring windows overlap; None: 128, or a third of `max_length`
    where that is less. Only the context is spread over windows; a question that would leave it too
    little room is cut. Raises `EngineError` where `max_length` is too short for `stride`.
    """
    limit, stride, most = question_limit(max_length - tokens.special(pairs=True), max_length, stride)
    if not limit:
        raise EngineError(
            f"stride={stride}: too long for windows of max_length={max_length} tokens; "
            f"allowed: 0 to {most}, or a greater max_length"
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
