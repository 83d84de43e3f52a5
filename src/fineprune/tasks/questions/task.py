"""Extractive question answering: the `task` section of a recipe, and how it is loaded.

`squad` reads the questions, `context_windows` makes windows of them, `spans` reads off answers and scores
them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fineprune._engine_errors import engine_errors
from fineprune._messages import choose
from fineprune.errors import FinepruneError
from fineprune.tasks.data import warn_of_leak
from fineprune.tasks.questions.data import QuestionAnsweringData
from fineprune.tasks.questions.spans import AnswerRules
from fineprune.tasks.questions.squad import COLUMNS, Questions, check_suffix, read_file, read_split
from fineprune.tasks.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METRICS = ("f1", "exact_match")


@dataclass(frozen=True)
class QuestionAnsweringConfig(Source):
    """Settings of question answering; files are SQuAD's (JSON), or JSONL or Parquet with a row a question."""

    kind: str = "question_answering"
    unanswerable: bool = False
    """Questions may have no answer, as in SQuAD v2."""

    mismatched: str = "stop"
    """For answers that differ from the context at their place: "stop" with an error, or "skip" them."""

    stride: int | None = None
    """Tokens by which windows overlap. None: 128, or a third of max_length where that is less."""

    metric: str = "f1"
    """The main one of f1, exact_match."""

    n_best: int = 20
    """Starts and ends that are paired in each window, and candidates that are kept."""

    max_answer_length: int = 30
    """Tokens of the longest answer."""

    def check(self) -> None:
        """Raise `FinepruneError` for a metric or a rule of answers that cannot work."""
        if not isinstance(self.unanswerable, bool):
            raise FinepruneError(f"task: unanswerable is {self.unanswerable!r}, expected true or false")
        choose(self.mismatched, ("stop", "skip"), "task.mismatched")
        choose(self.metric, METRICS, "task.metric")
        with engine_errors("task: "):
            self.rules()

    def load(self, need_train: bool = True, model: "PreTrainedModel | None" = None) -> QuestionAnsweringData:
        """Read the questions; `model` does not matter.

        Raises:
            FinepruneError: as `squad.read_file`, and for no training data while `need_train`.
        """
        train_place, validation_place = self.places(need_train)
        train = None if train_place is None else self._read(train_place)
        validation = self._read(validation_place)
        if train is not None and train_place != validation_place:
            rows = (zip(read.questions, read.contexts, strict=True) for read in (train, validation))
            warn_of_leak(validation_place, next(rows), list(next(rows)))
        return QuestionAnsweringData(train, validation, self.rules(), self.metric)

    def check_files(self) -> None:
        """Raise `FinepruneError` for files that are not there, of another form, or lack columns."""
        for place in self.files():
            check_suffix(Path(place))
        super().check_files()

    def wanted_columns(self, place: str) -> tuple[str, ...]:
        """Return the columns of a table of questions; none of SQuAD's own files."""
        return COLUMNS if Path(place).suffix.lower() in (".jsonl", ".parquet") else ()

    def rules(self) -> AnswerRules:
        """Return the rules by which contexts are read and answers chosen."""
        return AnswerRules(self.unanswerable, self.stride, self.n_best, self.max_answer_length)

    def _read(self, place: str) -> Questions:
        return self.read(
            place,
            lambda path: read_file(path, self.unanswerable, self.mismatched),
            lambda *split: read_split(split, self.unanswerable, self.mismatched),
        )
