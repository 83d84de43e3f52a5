"""Questions with their contexts, as windows for a trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune.tasks.data import Evaluation
from fineprune.tasks.questions.context_windows import RightPadding
from fineprune.tasks.questions.spans import AnswerRules, best_spans, best_texts, score_texts
from fineprune.tasks.questions.squad import Questions
from fineprune.tasks.questions.window_cache import cached_windows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase

UNANSWERABLE = "unanswerable_questions"
"""The setting of a model's config that says that it was trained on questions without an answer."""


@dataclass(frozen=True)
class QuestionAnsweringData:
    """A task with its questions read."""

    kind: ClassVar[str] = "question_answering"
    train: Questions | None
    validation: Questions
    rules: AnswerRules
    metric: str

    def sizes(self) -> dict[str, int]:
        """Return the number of questions in "train" and "validation"."""
        return {"train": len(self.train or ()), "validation": len(self.validation)}

    def head(self) -> dict[str, Any]:
        """Return the settings for two outputs a token: its logits as the start and end of the answer."""
        return {"num_labels": 2, UNANSWERABLE: bool(self.rules.unanswerable)}

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """Return the windows of the training questions, in order."""
        if self.train is None:
            return None
        return cached_windows(self.train, tokenizer, max_length, self.rules.stride).rows()

    def evaluation(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Evaluation:
        """Return the windows of the validation questions in order of length: batches need little padding.

        The scores are `exact_match` and `f1` of the answers read off the start and end logits of all windows.
        """
        import numpy as np

        windows = cached_windows(self.validation, tokenizer, max_length, self.rules.stride)
        order = np.argsort(windows.lengths(), kind="stable")
        back = np.argsort(order)

        def score(evaluation: "EvalPrediction") -> dict[str, float]:
            starts, ends = (np.asarray(logits)[back] for logits in evaluation.predictions[:2])
            spans = best_spans(windows, starts, ends, self.rules)
            return score_texts(best_texts(spans, self.validation.contexts), self.validation)

        return Evaluation(windows.rows().select(order), score)

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Return the function that pads each batch to its longest window, on the right."""
        return RightPadding(tokenizer)
