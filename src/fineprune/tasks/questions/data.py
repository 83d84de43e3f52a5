"""Questions with their contexts, as windows for a trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune.tasks.data import Evaluation
from fineprune.tasks.questions.context_windows import ContextWindows, RightPadding
from fineprune.tasks.questions.spans import AnswerRules, best_spans, best_texts, score_texts
from fineprune.tasks.questions.squad import Questions
from fineprune.tasks.questions.window_cache import cached_windows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedTokenizerBase

UNANSWERABLE = "unanswerable_questions"
"""The setting of a model's config that says that it was trained on questions without an answer."""


class AnswerScore:
    """The scoring function of an evaluation: reads answers off the logits of all windows.

    Args:
        data: the questions and the rules.
        windows: those of the validation questions.
        back: for each window, its row in the evaluation, (windows,).
    """

    def __init__(self, data: "QuestionAnsweringData", windows: ContextWindows, back: Any) -> None:
        self._data, self._windows, self._back = data, windows, back
        self.only_empty = False
        """Whether the last answers were all empty, though some questions have one."""

    def __call__(self, evaluation: "EvalPrediction") -> dict[str, float]:
        """Return `exact_match` and `f1`."""
        import numpy as np

        validation = self._data.validation
        starts, ends = (np.asarray(logits)[self._back] for logits in evaluation.predictions[:2])
        texts = best_texts(best_spans(self._windows, starts, ends, self._data.rules), validation.contexts)
        self.only_empty = len(texts) > 1 and any(validation.answers) and not any(texts)
        return score_texts(texts, validation, bool(self._data.rules.unanswerable))


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
        return Evaluation(windows.rows().select(order), AnswerScore(self, windows, np.argsort(order)))

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Return the function that pads each batch to its longest window, on the right."""
        return RightPadding(tokenizer)
