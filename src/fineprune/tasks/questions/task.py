"""Extractive question answering: the `task` section of a recipe, and what it becomes.

Questions are read in `squad`, made into windows in `qa_features`, answered and scored in `qa_answers`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune._messages import near
from fineprune._validation import check_keys
from fineprune.errors import FinepruneError
from fineprune.tasks.questions.context_windows import RightPadding, Windows
from fineprune.tasks.questions.spans import AnswerRules, best_spans, best_texts, score_texts
from fineprune.tasks.questions.squad import Questions, read_file, read_split
from fineprune.tasks.questions.window_cache import cached_windows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

METRICS = ("f1", "exact_match")
HEAD = "ForQuestionAnswering"
"""What the name of a model's class has in it."""

UNANSWERABLE = "unanswerable_questions"
"""Where a model's config says that it was trained on questions without an answer."""

_SPLITS: dict[str, Any] = {"train_split": "train", "validation_split": "validation"}


@dataclass(frozen=True)
class QuestionAnsweringConfig:
    """Where the questions are, and how they are answered. Raises `FinepruneError` for contradictions.

    `train`, `validation`: official SQuAD files (JSON), or JSONL and Parquet with a row a question. Or
    `hub`, `subset` and two splits: a data set on the Hugging Face hub, such as `squad`.
    """

    kind: str = "question_answering"
    train: str | None = None
    validation: str | None = None
    hub: str | None = None
    subset: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    unanswerable: bool = False
    """Questions may have no answer, as in SQuAD v2."""

    mismatched: str = "stop"
    """Answers that do not stand in the context at their place: "stop" with an error, or "skip"."""

    stride: int | None = None
    """Tokens by which windows overlap. None: 128, or a third of max_length where that is less."""

    metric: str = "f1"
    """The main one of f1, exact_match."""

    n_best: int = 20
    """Starts and ends that are paired in each window, and answers that are kept."""

    max_answer_length: int = 30
    """Tokens of the longest answer that is given."""

    def __post_init__(self) -> None:
        self._check_values()
        self._check_source()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "QuestionAnsweringConfig":
        """Make one from the `task` section of a recipe; unknown settings are errors."""
        check_keys(values, [setting.name for setting in fields(cls)], "task")
        return cls(**values)

    def load(
        self, need_train: bool = True, model: "PreTrainedModel | None" = None
    ) -> "QuestionAnsweringData":
        """Read the questions; a trained model must be one that answers them."""
        if model is not None and HEAD not in type(model).__name__:
            raise FinepruneError(
                f"task: kind is {self.kind!r} but the model is a {type(model).__name__}; "
                "it takes a model that was trained on such a task"
            )
        if need_train and self.hub is None and self.train is None:
            raise FinepruneError("task: no training data; give a `train` file")
        train = self._read(self.train, self.train_split) if need_train else None
        return QuestionAnsweringData(self, train, self._read(self.validation, self.validation_split))

    def with_validation(self, path: str) -> "QuestionAnsweringConfig":
        """The same task scored on another file, without training data."""
        nowhere: dict[str, Any] = {"train": None, "hub": None, "subset": None}
        return replace(self, validation=path, **nowhere, **_SPLITS)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values; `from_dict` makes an equal config of them."""
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}

    def answering(self) -> dict[str, Any]:
        """What of the settings `qa_prediction.answer` takes."""
        names = ("unanswerable", "stride", "n_best", "max_answer_length")
        return {name: getattr(self, name) for name in names}

    def _read(self, path: str | None, split: str) -> Questions:
        if self.hub is not None:
            return read_split(self.hub, self.subset, split, self.unanswerable, self.mismatched)
        return read_file(str(path), self.unanswerable, self.mismatched)

    def _check_values(self) -> None:
        if self.kind != "question_answering":
            raise FinepruneError(f"task: kind is {self.kind!r}, expected 'question_answering'")
        for name in ("train", "validation", "hub", "subset", "train_split", "validation_split"):
            value = getattr(self, name)
            optional = value is None and name not in _SPLITS
            if not optional and (not isinstance(value, str) or not value):
                raise FinepruneError(f"task: {name} is {value!r}, expected text")
        if not isinstance(self.unanswerable, bool):
            raise FinepruneError(f"task: unanswerable is {self.unanswerable!r}, expected true or false")
        for name, allowed in (("mismatched", ("stop", "skip")), ("metric", METRICS)):
            value = getattr(self, name)
            if value not in allowed:
                close = near(str(value), allowed, 1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise FinepruneError(f"task: {name} is {value!r}; {hint}allowed: {', '.join(allowed)}")
        for name, least in (("stride", 0), ("n_best", 1), ("max_answer_length", 1)):
            value = getattr(self, name)
            if value is None and name == "stride":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise FinepruneError(f"task: {name} is {value!r}, expected a whole number, at least {least}")

    def _check_source(self) -> None:
        if self.hub is not None:
            for name in ("train", "validation"):
                if getattr(self, name) is not None:
                    raise FinepruneError(
                        f"task: {name} is the file {getattr(self, name)!r} and hub is {self.hub!r}; "
                        "give files or a data set on the hub, not both"
                    )
            return
        if self.validation is None:
            if self.train is None:
                raise FinepruneError(
                    "task: no data; give the files `train` and `validation`, or a data set as `hub`"
                )
            raise FinepruneError(
                f"task: train is {self.train!r} but there is no `validation` file to score on"
            )
        for name, default in ({"subset": None} | _SPLITS).items():
            if getattr(self, name) != default:
                raise FinepruneError(
                    f"task: {name} is {getattr(self, name)!r} but belongs to `hub`, which is not set"
                )


@dataclass
class QuestionAnsweringData:
    """A task with its questions read. It remembers the windows of `validation_rows` to score them."""

    config: QuestionAnsweringConfig
    train: Questions | None
    validation: Questions
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    _windows: Windows | None = field(default=None, repr=False)
    _order: Any = field(default=None, repr=False)

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.config.metric

    def sizes(self) -> dict[str, int]:
        """Questions in "train" and "validation"."""
        return {"train": len(self.train or ()), "validation": len(self.validation)}

    def head(self) -> dict[str, Any]:
        """Two outputs a token: its logits as the start and as the end of the answer."""
        return {"num_labels": 2, UNANSWERABLE: self.config.unanswerable}

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """The windows of the training questions, in order."""
        if self.train is None:
            return None
        return cached_windows(self.train, tokenizer, max_length, self.config.stride).rows()

    def validation_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
        """The windows of the validation questions in order of length: batches need little padding."""
        import numpy as np

        self._windows = cached_windows(self.validation, tokenizer, max_length, self.config.stride)
        self._order = np.argsort(self._windows.lengths(), kind="stable")
        return self._windows.rows().select(self._order)

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Pads each batch to its longest window, behind it: positions stay what they are."""
        return RightPadding(tokenizer)

    def compute_metrics(self) -> "Callable[[EvalPrediction], dict[str, float]]":
        """`exact_match` and `f1` of the answers read off start and end logits, over all windows."""

        def score(evaluation: "EvalPrediction") -> dict[str, float]:
            import numpy as np

            if self._windows is None:
                raise RuntimeError("validation_rows makes the windows that are scored; call it first")
            back = np.argsort(self._order)
            starts, ends = (np.asarray(logits)[back] for logits in evaluation.predictions[:2])
            config = self.config
            rules = AnswerRules(
                config.unanswerable, n_best=config.n_best, max_answer_length=config.max_answer_length
            )
            spans = best_spans(self._windows, starts, ends, rules)
            return score_texts(best_texts(spans, self.validation.contexts), self.validation)

        return score
