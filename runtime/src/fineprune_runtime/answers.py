"""From start and end logits to answers, over all windows of a question, and their scores.

The rules are those of Hugging Face's run_qa: in each window the `n_best` highest starts and ends are
paired; a pair counts if both tokens are of the context, the end is not before the start, and it is not
too long; its score is the sum of its logits. Of all windows of a question the `n_best` highest pairs
are kept. "No answer" (SQuAD v2) scores the least that any window gives to [CLS]. Two rules are
ours: a pair without text does not count, and a question without any pair gets "", not "empty".

numpy is imported where it is used: fineprune's command line imports this module at every start.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fineprune_runtime.errors import EngineError
from fineprune_runtime.results import Answer

_ROWS = 1024  # windows whose pairs are in memory at a time


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class AnswerRules:
    """How contexts are read in windows, and which of their spans may be the answer.

    Raises:
        EngineError: a value that is not allowed.
    """

    unanswerable: bool | None = None
    """Whether "no answer" competes with the spans; None: as the model's configuration says, else False."""
    stride: int | None = None
    """Tokens by which neighboring windows overlap; None: 128, or a third of a window where that is less."""
    n_best: int = 20
    """Candidates kept of each window and of each question."""
    max_answer_length: int = 30
    """Tokens of the longest answer."""
    threshold: float = 0.0
    """Having no answer wins if its score exceeds the best candidate's by more than this."""

    def __post_init__(self) -> None:
        if self.unanswerable not in (None, True, False):
            raise EngineError(f"unanswerable is {self.unanswerable!r}, allowed: true, false, or none")
        if self.stride is not None and not _is_whole(self.stride, 0):
            raise EngineError(f"stride is {self.stride!r}, expected a number of tokens, 0 or more")
        for name in ("n_best", "max_answer_length"):
            value = getattr(self, name)
            if not _is_whole(value, 1):
                raise EngineError(f"{name} is {value!r}, expected a whole number, 1 or more")


_DEFAULT = AnswerRules()


class AnswerWindows(Protocol):
    """What a model reads of contexts at a time: all windows, those of a question together."""

    def lengths(self) -> Any:
        """Tokens of each window, (windows,)."""

    def column(self, name: str) -> Any:
        """A number for each window: `question`, its row, or `cls`, the token that stands for no answer."""

    def tokens(self, name: str) -> Any:
        """A number for each token, all windows one after the other: `starts` or `ends`, its characters
        in the context, -1 for a token that is not of the context.
        """


class Spans(NamedTuple):
    """Candidates of all questions as arrays, question by question, the best first.

    `question` (its row), `start` and `end` (characters; twice 0: no answer), `score` (sum of logits),
    `share` (softmax of the scores over the candidates of a question).
    """

    question: Any
    start: Any
    end: Any
    score: Any
    share: Any


def best_spans(windows: AnswerWindows, starts: Any, ends: Any, rules: AnswerRules = _DEFAULT) -> Spans:
    """Return the best candidates of each question: up to `rules.n_best`, and "no answer" where allowed.

    Args:
        windows: the windows of all questions.
        starts: logits of answers' first tokens, (windows, at least the longest window's tokens). Values
            behind the end of a window are ignored.
        ends: logits of answers' last tokens, of the same shape.
        rules: `stride` does not matter here, and `unanswerable=None` is False.

    Raises:
        EngineError: a logit is NaN or infinite: the model diverged.
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
    order = order[_place(owner[order]) < rules.n_best]
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
    """The candidates of each question with their texts, the best first; at least one each."""
    answers: list[list[Answer]] = [[] for _ in contexts]
    columns = (spans.question, spans.share, spans.start, spans.end)
    for row, share, start, end in zip(*(column.tolist() for column in columns), strict=True):
        answers[row].append(Answer(contexts[row][start:end], share, start, end))
    return [known or [Answer("", 0.0, 0, 0)] for known in answers]


def best_texts(spans: Spans, contexts: list[str]) -> list[str]:
    """The text of the best candidate of each question; "" where there is none."""
    import numpy as np

    texts = [""] * len(contexts)
    heads = np.flatnonzero(_place(spans.question) == 0)
    columns = (spans.question[heads], spans.start[heads], spans.end[heads])
    for row, start, end in zip(*(column.tolist() for column in columns), strict=True):
        texts[row] = contexts[row][start:end]
    return texts


def _framed(logits: Any, lengths: Any) -> Any:
    """Logits whose every window is finite, and minus infinity behind its end."""
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
    """The best pairs of some windows: window, first and last character, and score of each."""
    import numpy as np

    one, two = _highest(starts, rules.n_best), _highest(ends, rules.n_best)
    behind = len(firsts) - 1
    first = firsts[np.minimum(begins[:, None] + one, behind)]  # of a token behind the end: anything
    last = lasts[np.minimum(begins[:, None] + two, behind)]
    score = np.take_along_axis(starts, one, 1)[:, :, None] + np.take_along_axis(ends, two, 1)[:, None, :]
    tokens = two[:, None, :] - one[:, :, None] + 1
    valid = (tokens >= 1) & (tokens <= rules.max_answer_length) & np.isfinite(score)
    valid &= (first >= 0)[:, :, None] & (last[:, None, :] > first[:, :, None])
    score = np.where(valid, score, -np.inf).reshape(len(rows), -1)
    best = _highest(score, rules.n_best)
    window, at = np.nonzero(np.isfinite(np.take_along_axis(score, best, 1)))
    pair = best[window, at]
    width = two.shape[1]
    return rows[window], first[window, pair // width], last[window, pair % width], score[window, pair]


def _highest(values: Any, count: int) -> Any:
    """Where the highest values of each row are, the highest first; of equal ones the first first."""
    import numpy as np

    return np.argsort(-values, axis=1, kind="stable")[:, :count]


def _place(owner: Any) -> Any:
    """0, 1, 2, … within each run of equal values."""
    import numpy as np

    heads = np.flatnonzero(np.diff(owner, prepend=-1))
    return np.arange(len(owner)) - np.repeat(heads, np.diff(heads, append=len(owner)))


def _shares(owner: Any, score: Any) -> Any:
    """Softmax within each run of equal owners."""
    import numpy as np

    heads = np.flatnonzero(np.diff(owner, prepend=-1))
    if not len(heads):
        return np.zeros(0)
    counts = np.diff(heads, append=len(owner))
    score = score.astype(np.float64)
    powers = np.exp(score - np.repeat(np.maximum.reduceat(score, heads), counts))
    return powers / np.repeat(np.add.reduceat(powers, heads), counts)
