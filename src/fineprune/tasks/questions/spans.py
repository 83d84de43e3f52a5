"""From start and end logits to answers, by the rules of `fineprune_runtime.answers`, and their scores."""

from typing import TYPE_CHECKING, Any

from fineprune._engine_errors import engine_errors
from fineprune._extras import require
from fineprune.tasks.questions.squad import Questions
from fineprune_runtime import answers
from fineprune_runtime.answers import AnswerRules, Spans, best_answers, best_texts
from fineprune_runtime.results import Answer

if TYPE_CHECKING:
    from fineprune.tasks.questions.context_windows import ContextWindows

__all__ = ["Answer", "AnswerRules", "Spans", "best_answers", "best_spans", "best_texts", "score_texts"]


def best_spans(windows: "ContextWindows", starts: Any, ends: Any, rules: AnswerRules | None = None) -> Spans:
    """Call `fineprune_runtime.answers.best_spans`; raise `FinepruneError` if the model diverged."""
    with engine_errors(after="; lower the learning rate"):
        return answers.best_spans(windows, starts, ends, rules or AnswerRules())


def score_texts(texts: list[str], read: Questions) -> dict[str, float]:
    """Return `exact_match` and `f1` of the predicted texts, as fractions, by torchmetrics.

    If a question has several true answers, the best match counts. If it has none, "" is right.
    """
    require("recipes", "scoring")
    from torchmetrics.functional.text import squad

    given = [{"prediction_text": text, "id": name} for text, name in zip(texts, read.ids, strict=True)]
    truth = [
        {"answers": {"text": [span.text for span in spans] or [""]}, "id": name}
        for spans, name in zip(read.answers, read.ids, strict=True)
    ]
    return {name: float(value) / 100 for name, value in squad(given, truth).items()}
