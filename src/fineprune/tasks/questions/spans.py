"""From start and end logits to answers, by the rules of `fineprune_runtime.answers`, and their scores."""

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fineprune._engine_errors import engine_errors
from fineprune._extras import require
from fineprune.tasks.questions.squad import Questions, Span
from fineprune_runtime import answers
from fineprune_runtime.answers import AnswerRules, Spans, best_answers, best_texts
from fineprune_runtime.results import Answer

if TYPE_CHECKING:
    from fineprune.tasks.questions.context_windows import ContextWindows

__all__ = ["Answer", "AnswerRules", "Spans", "best_answers", "best_spans", "best_texts", "score_texts"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def best_spans(windows: "ContextWindows", starts: Any, ends: Any, rules: AnswerRules | None = None) -> Spans:
    """Call `fineprune_runtime.answers.best_spans`; raise `FinepruneError` if the model diverged."""
    with engine_errors(after="; lower the learning rate"):
        return answers.best_spans(windows, starts, ends, rules or AnswerRules())


def score_texts(texts: list[str], read: Questions, unanswerable: bool = False) -> dict[str, float]:
    """Return `exact_match` and `f1` of the predicted texts, as fractions, by torchmetrics.

    If a question has several true answers, the best match counts. If it has none, "" is right.

    Args:
        texts: a text for each question.
        read: the questions.
        unanswerable: score as the official script of SQuAD v2, which leaves out answers of punctuation and
            articles alone; that of v1.1 counts them.
    """
    require("recipes", "scoring")
    from torchmetrics.functional.text import squad

    given = [{"prediction_text": text, "id": name} for text, name in zip(texts, read.ids, strict=True)]
    truth = [
        {"answers": {"text": _true_texts(spans, unanswerable) or [""]}, "id": name}
        for spans, name in zip(read.answers, read.ids, strict=True)
    ]
    return {name: float(value) / 100 for name, value in squad(given, truth).items()}


def _true_texts(spans: Sequence[Span], unanswerable: bool) -> list[str]:
    return [span.text for span in spans if not unanswerable or _has_words(span.text)]


def _has_words(text: str) -> bool:
    """Return whether anything is left of a text without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return bool(_ARTICLES.sub(" ", bare).strip())
