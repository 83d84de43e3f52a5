"""Turn start and end logits into answers and their scores, over all windows of a question.

The rules are those of Hugging Face's run_qa. In each window the `n_best` highest starts and ends are paired.
A pair counts if both tokens belong to the context, the end is not before the start, and it is not too long.
Its score is the sum of its logits. The `n_best` highest pairs from all windows of a question are its
candidates. "No answer" (SQuAD v2) gets the lowest score that any window gives to [CLS]. Two rules are ours: a
pair without text does not count, and a question without any pair gets "", not "empty".

numpy is imported inside functions because fineprune's command line imports this module at every start.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

from fineprune_runtime.errors import EngineError
from fineprune_runtime.results import Answer

_ROWS = 1024  # windows whose pairs are in memory at the same time


def _is_whole(value: Any, least: int) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and int(value) >= least


@dataclass(frozen=True)
class AnswerRules:
    """The rules by which contexts are divided into windows, and spans may be the answer.

    Raises:
        EngineError: a value that is not allowed.
    """

    unanswerable: bool | None = None
    """Whether "no answer" competes with the spans; None: as the model's configuration says, else False."""
    stride: int | None = None
    """Tokens by which neighboring windows overlap; None: 128, or a third of a window where that is less."""
    n_best: int = 20
    """Candidates of each window, and of each question."""
    max_answer_length: int = 30
    """Tokens of the longest answer."""
    threshold: float = 0.0
    """The result is "no answer" if its score exceeds that of the best candidate by more than this."""

    def __post_init__(self) -> None:
        if self.unanswerable not in (None, True, False):
            raise EngineError(f"unanswerable is {self.unanswerable!r}, allowed: true, false, or none")
        if self.stride is not None and not _is_whole(self.stride, 0):
            raise EngineError(f"stride is {self.stride!r}, expected a number of tokens, 0 or more")
        for name in ("n_best", "max_answer_length"):
            value = getattr(self, name)
            if not _is_whole(value, 1):
                raise EngineError(f"{name} is {value!r}, expected a whole number, 1 or more")
        threshold: Any = self.threshold  # of a caller without types
        number = isinstance(threshold, Real) and not isinstance(threshold, bool)
        if not (number and math.isfinite(threshold)):
            raise EngineError(f"threshold is {threshold!r}, expected a difference of scores, a number")


def rules_of(given: Mapping[str, Any]) -> AnswerRules:
    """Return the rules with the values given by name.

    Raises:
        EngineError: a name that is no rule, or a value that is not allowed.
    """
    known = [field.name for field in fields(AnswerRules)]
    for name in given:
        if name not in known:
            raise EngineError(f"predict: there is no rule {name!r}, allowed: {', '.join(known)}")
    return AnswerRules(**given)


_DEFAULT = AnswerRules()


class AnswerWindows(Protocol):
    """The windows of all questions; those of one question follow each other."""

    def lengths(self) -> Any:
        """Return the number of tokens of each window, (windows,)."""

    def column(self, name: str) -> Any:
        """Return a column, (windows,): `question`, its index, or `cls`, the token that means "no answer"."""

    def tokens(self, name: str) -> Any:
        """Return a column, (tokens,), one window after the other: `starts` or `ends` (exclusive).

        These are the characters of each token in the context; -1 for a token outside the context.
        """


class Spans(NamedTuple):
    """The candidates of all questions as arrays of (candidates,), question by question, the best first."""

    question: Any
    """The index of the question."""
    start: Any
    """The first character; for "no answer" both `start` and `end` are 0."""
    end: Any
    """The last character (exclusive)."""
    score: Any
    """The sum of the two logits."""
    share: Any
    """The softmax of the scores over the candidates of a question."""


def best_spans(windows: AnswerWindows, starts: Any, ends: Any, rules: AnswerRules = _DEFAULT) -> Spans:
    """Return the best candidates of each question: up to `rules.n_best`, and "no answer" where allowed.

    Args:
        windows: the windows of all questions.
        starts: the logits of first tokens, (windows, at least the tokens of the longest window). Values after
            the end of a window are ignored.
        ends: the logits of last tokens, of the same shape.
        rules: the rules. `stride` does not matter here, and `unanswerable=None` means False.

    Raises:
        EngineError: a logit is NaN or infinite, because the model diverged.
    """
    import numpy as np

    lengths = windows.lengths()
    starts, ends = (_framed(np.asarray(logits), lengths) for logits in (starts, ends))
    firsts, lasts = windows.tokens("starts"), windows.tokens("ends")
    begins = np.cumsum(lengths) - lengths
    parts = []
    for begin in range(0, len(lengths), _ROWS):
        rows = np.arange(begin, min(begin + _ROWS, len(lengths)))
        parts.append(_pairs(starts[rows], ends[rows], firsts, lasts, begins[rows], rows, rules))
    window, first, last, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    question = windows.column("question")
    owner = question[window]
    order = np.lexsort((-score, owner))
    order = order[_rank(owner[order]) < rules.n_best]
    owner, first, last, score = (values[order] for values in (owner, first, last, score))
    if rules.unanswerable:
        anchor = windows.column("cls")
        each = np.arange(len(lengths))
        null = np.full(int(question[-1]) + 1, np.inf, dtype=score.dtype)
        np.minimum.at(null, question, starts[each, anchor] + ends[each, anchor])
        nobody = np.zeros(len(null), dtype=first.dtype)
        owner = np.concatenate([owner, np.arange(len(null), dtype=owner.dtype)])
        first, last = np.concatenate([first, nobody]), np.concatenate([last, nobody])
        rank = np.concatenate([score, null - np.asarray(rules.threshold, dtype=null.dtype)])
        score = np.concatenate([score, null])
        order = np.lexsort((-rank, owner))
        owner, first, last, score = (values[order] for values in (owner, first, last, score))
    return Spans(owner, first, last, score, _shares(owner, score))


def best_answers(spans: Spans, contexts: list[str]) -> list[list[Answer]]:
    """Return the candidates of each question with their texts, the best first, at least one per question."""
    answers: list[list[Answer]] = [[] for _ in contexts]
    columns = (spans.question, spans.share, spans.start, spans.end)
    for row, share, start, end in zip(*(column.tolist() for column in columns), strict=True):
        answers[row].append(Answer(contexts[row][start:end], share, start, end))
    return [known or [Answer("", 0.0, 0, 0)] for known in answers]


def best_texts(spans: Spans, contexts: list[str]) -> list[str]:
    """Return the text of the best candidate of each question; "" for a question without candidates."""
    import numpy as np

    texts = [""] * len(contexts)
    heads = np.flatnonzero(_rank(spans.question) == 0)
    columns = (spans.question[heads], spans.start[heads], spans.end[heads])
    for row, start, end in zip(*(column.tolist() for column in columns), strict=True):
        texts[row] = contexts[row][start:end]
    return texts


def _framed(logits: Any, lengths: Any) -> Any:
    """Return the logits with minus infinity after the end of each window; raise if another is not finite."""
    import numpy as np

    if logits.shape[0] != len(lengths) or logits.shape[1] < lengths.max():
        raise ValueError(f"logits of shape {logits.shape} for {len(lengths)} windows of {lengths.max()}")
    inside = np.arange(logits.shape[1]) < lengths[:, None]
    if not np.isfinite(logits[inside]).all():
        raise EngineError("the model's predictions contain NaN or infinity: training diverged")
    return np.where(inside, logits, -np.inf)


def _pairs(
    starts: Any, ends: Any, firsts: Any, lasts: Any, begins: Any, rows: Any, rules: AnswerRules
) -> tuple[Any, Any, Any, Any]:
    """Return window, first character, last character and score of the best pairs of some windows."""
    import numpy as np

    start, end = _highest(starts, rules.n_best), _highest(ends, rules.n_best)
    last_token = len(firsts) - 1
    first = firsts[np.minimum(begins[:, None] + start, last_token)]  # after the end of a window: any token
    last = lasts[np.minimum(begins[:, None] + end, last_token)]
    score = np.take_along_axis(starts, start, 1)[:, :, None] + np.take_along_axis(ends, end, 1)[:, None, :]
    tokens = end[:, None, :] - start[:, :, None] + 1
    valid = (tokens >= 1) & (tokens <= rules.max_answer_length) & np.isfinite(score)
    valid &= (first >= 0)[:, :, None] & (last[:, None, :] > first[:, :, None])
    score = np.where(valid, score, -np.inf).reshape(len(rows), -1)
    best = _highest(score, rules.n_best)
    window, at = np.nonzero(np.isfinite(np.take_along_axis(score, best, 1)))
    pair = best[window, at]
    width = end.shape[1]
    return rows[window], first[window, pair // width], last[window, pair % width], score[window, pair]


def _highest(values: Any, count: int) -> Any:
    """Return the indices of the highest values of each row, highest first; equal values keep their order."""
    import numpy as np

    return np.argsort(-values, axis=1, kind="stable")[:, :count]


def _rank(owner: Any) -> Any:
    """Return 0, 1, 2, … within each run of equal values."""
    import numpy as np

    heads = np.flatnonzero(np.diff(owner, prepend=-1))
    return np.arange(len(owner)) - np.repeat(heads, np.diff(heads, append=len(owner)))


def _shares(owner: Any, score: Any) -> Any:
    """Return the softmax within each run of equal owners."""
    import numpy as np

    heads = np.flatnonzero(np.diff(owner, prepend=-1))
    if not len(heads):
        return np.zeros(0)
    counts = np.diff(heads, append=len(owner))
    score = score.astype(np.float64)
    powers = np.exp(score - np.repeat(np.maximum.reduceat(score, heads), counts))
    return powers / np.repeat(np.add.reduceat(powers, heads), counts)
