"""From questions to windows: the stretches of a context that a model reads, with the place of the answer.

A context that is too long for the model is read in windows that overlap by the document stride
(Devlin et al., 2019, for SQuAD): each is the question with a stretch of the context, and each has the
token positions of the answer, or twice that of [CLS] if it does not hold the answer.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from fineprune._extras import require
from fineprune.errors import FinepruneError
from fineprune.tasks.questions.squad import Questions, Span
from fineprune_runtime.windows import anchors, question_limit, shortened

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped]
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_CHUNK, _LETTERS = 500, 2_000_000  # questions, and characters, in memory as Python's lists at a time
_MANY = 10_000  # questions for which starting processes pays
_NOT_FOR_MODELS = ("question", "cls", "starts", "ends")

_log = logging.getLogger("fineprune")


@dataclass(frozen=True)
class ContextWindows:
    """The windows of all questions, those of a question together, as the tokenizer cut them."""

    table: "pyarrow.Table"
    """A row for each window: the model's inputs; `start_positions` and `end_positions` in tokens; for reading
    answers off `question` (its row), `cls` (the position of [CLS]), and for each token `starts` and `ends`,
    its characters in the context, -1 for a token outside the context.
    """

    cut: int
    """Questions that were too long and were cut."""

    lost: int
    """Answers that no window holds whole."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def warn(self, limit: int) -> None:
        """Log what was lost; a question may have `limit` tokens."""
        if self.cut:
            _log.warning("%d questions are longer than %d tokens and were cut", self.cut, limit)
        if self.lost:
            text = "%d answers are in no window whole: their windows count as without an answer"
            _log.warning(text, self.lost)

    def rows(self) -> "Dataset":
        """Return the rows for training, in the same order: the model's inputs and the two positions."""
        from datasets import Dataset

        return Dataset(self.table.drop_columns(_NOT_FOR_MODELS))

    def column(self, name: str) -> Any:
        """Return a number for each window, (windows,)."""
        return self.table.column(name).to_numpy()

    def lengths(self) -> Any:
        """Return the tokens of each window, (windows,)."""
        import pyarrow.compute  # type: ignore[import-untyped]

        return pyarrow.compute.list_value_length(self.table.column("starts")).to_numpy()

    def tokens(self, name: str) -> Any:
        """Return a number for each token, all windows one after the other (see `lengths`)."""
        import numpy as np

        chunks = self.table.column(name).chunks
        return np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])


@dataclass(frozen=True)
class RightPadding:
    """Make a batch of windows, padded on the right whatever the tokenizer's own side is.

    The positions of answers count from the left, so padding there would shift them.
    """

    tokenizer: "PreTrainedTokenizerBase"

    def __call__(self, rows: list[Any]) -> Any:
        """Return the padded batch."""
        from transformers.data.data_collator import pad_without_fast_tokenizer_warning

        return pad_without_fast_tokenizer_warning(
            self.tokenizer, rows, padding=True, padding_side="right", return_tensors="pt"
        )


def make_windows(
    read: Questions, tokenizer: "PreTrainedTokenizerBase", max_length: int, stride: int | None = None
) -> ContextWindows:
    """Tokenize questions with their contexts into windows of at most `max_length` tokens.

    The question comes first, or the context for tokenizers that pad on the left, as XLNet's does. Only the
    context is spread over windows; a question that would leave it too little room is cut. A window holds
    the answer if all its tokens are in it; if there are several answers, the first one. Many questions are
    shared out to as many processes as torch has threads.

    Args:
        read: the questions.
        tokenizer: a fast one.
        max_length: tokens of a window.
        stride: tokens by which neighboring windows overlap; None: 128, or a third of `max_length` where
            that is less.

    Raises:
        FinepruneError: a tokenizer that does not know the places of its tokens, or a `max_length` that is
            too short for `stride`.
    """
    require("recipes", "question answering")
    import pyarrow
    import torch
    from joblib import Parallel, delayed

    limit, stride = limits(tokenizer, max_length, stride)
    questions, cut = _shortened(read.questions, tokenizer, limit)
    jobs = torch.get_num_threads() if len(read) >= _MANY else 1
    parts = Parallel(jobs, backend="loky")(
        delayed(_table)(
            questions[part],
            read.contexts[part],
            read.answers[part],
            part.start,
            tokenizer,
            max_length,
            stride,
        )
        for part in _parts(read.contexts)
    )
    windows = ContextWindows(
        pyarrow.concat_tables([table for table, _ in parts]), cut, sum(lost for _, lost in parts)
    )
    windows.warn(limit)
    return windows


def _parts(contexts: Sequence[str]) -> list[slice]:
    """Return the rows that are made into windows at a time."""
    starts, letters = [0], 0
    for row, context in enumerate(contexts):
        if row > starts[-1] and (row == starts[-1] + _CHUNK or letters + len(context) > _LETTERS):
            starts.append(row)
            letters = 0
        letters += len(context)
    return [slice(*ends) for ends in pairwise([*starts, len(contexts)])]


def limits(tokenizer: "PreTrainedTokenizerBase", max_length: int, stride: int | None) -> tuple[int, int]:
    """Return the tokens that a question may have, and the stride; raise as `make_windows` does."""
    if not tokenizer.is_fast:
        raise FinepruneError(
            f"{tokenizer.name_or_path}: the tokenizer ({type(tokenizer).__name__}) does not know the places "
            "of its tokens in the text; question answering needs a fast tokenizer"
        )
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    limit, chosen, most = question_limit(room, max_length, stride)
    if not limit:
        raise FinepruneError(
            f"task.stride={chosen}: too long for windows of training.max_length={max_length} tokens; "
            f"allowed: 0 to {most}, or a greater max_length"
        )
    return limit, chosen


def _shortened(
    questions: Sequence[str], tokenizer: "PreTrainedTokenizerBase", limit: int
) -> tuple[list[str], int]:
    """Return the questions cut to `limit` tokens, and the number of those that were longer."""
    short: list[str] = []
    cut = 0
    for begin in range(0, len(questions), _CHUNK):
        part, some = shortened(
            questions[begin : begin + _CHUNK], lambda texts: _offsets(texts, tokenizer), limit
        )
        short += part
        cut += some
    return short, cut


def _offsets(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[tuple[int, int]]]:
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["offset_mapping"]  # type: ignore[no-any-return]


def _table(
    questions: list[str],
    contexts: list[str],
    answers: list[list[Span]],
    first: int,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    stride: int,
) -> "tuple[pyarrow.Table, int]":
    """Return some windows, the first question being row `first`; and the number of answers not found."""
    import numpy as np
    import pyarrow

    context_first = tokenizer.padding_side == "left"
    encoded = tokenizer(
        *((contexts, questions) if context_first else (questions, contexts)),
        truncation="only_first" if context_first else "only_second",
        max_length=max_length,
        stride=stride,
        padding=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    question = np.asarray(encoded["overflow_to_sample_mapping"], dtype=np.int32)
    ends = np.cumsum([len(ids) for ids in encoded["input_ids"]])
    size = int(ends[-1])
    sides = chain.from_iterable(encoded.sequence_ids(index) for index in range(len(question)))
    side = np.fromiter((-1 if number is None else number for number in sides), np.int8, size)
    spans = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
    places = np.fromiter(spans, np.int32, 2 * size).reshape(size, 2)
    places[side != (0 if context_first else 1)] = -1
    ids = np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32, size)
    begins_with = (tokenizer.bos_token_id, tokenizer.cls_token_id)
    known = [token for token in begins_with if token is not None]
    anchor = anchors(ids, side < 0, ends, known)
    positions, lost = _positions(places, ends, question, answers, anchor)
    inputs = {
        name: _ragged(np.fromiter(chain.from_iterable(encoded[name]), np.int8, size), ends)
        for name in ("attention_mask", "token_type_ids")
        if name in encoded
    }
    columns = {
        "input_ids": _ragged(ids, ends),
        **inputs,
        "start_positions": positions[:, 0],
        "end_positions": positions[:, 1],
        "question": question + np.int32(first),
        "cls": anchor,
        "starts": _ragged(places[:, 0], ends),
        "ends": _ragged(places[:, 1], ends),
    }
    return pyarrow.table(columns), lost


def _positions(
    places: Any, ends: Any, question: Any, answers: list[list[Span]], anchor: Any
) -> tuple[Any, int]:
    """Return the first and last token of the answer in each window; and the number of answers split up."""
    import numpy as np

    positions = np.stack([anchor, anchor], axis=1)
    begins = ends - np.diff(ends, prepend=0)
    groups = np.searchsorted(question, np.arange(len(answers) + 1))
    lost = 0
    for row, known in enumerate(answers):
        if not known:
            continue
        start = known[0].start + len(known[0].text) - len(known[0].text.lstrip())
        end = known[0].start + len(known[0].text.rstrip())
        touching = []  # (window, first token, last token, first character, last character)
        for window in range(groups[row], groups[row + 1]):
            inside = places[begins[window] : ends[window]]
            held = np.flatnonzero((inside[:, 0] < end) & (inside[:, 1] > start))
            if len(held):
                one, last = held[0], held[-1]
                touching.append((window, one, last, inside[one, 0], inside[last, 1]))
        low = min((entry[3] for entry in touching), default=0)
        high = max((entry[4] for entry in touching), default=0)
        whole = [entry for entry in touching if (entry[3], entry[4]) == (low, high)]
        for window, one, last, *_ in whole:
            positions[window] = one, last
        lost += not whole
    return positions, lost


def _ragged(values: Any, ends: Any) -> Any:
    """Return values of all windows as a list for each."""
    import numpy as np
    import pyarrow

    return pyarrow.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), pyarrow.array(values))
