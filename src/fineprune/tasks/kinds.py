"""The table of kinds: what a model answers, and everything that follows from it.

A new kind is a package with a `Source`, its `TaskData` and its predictions, and one entry in `KINDS`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fineprune._messages import choose
from fineprune.errors import FinepruneError
from fineprune.tasks.batches import Asked
from fineprune.tasks.data import TaskData
from fineprune.tasks.embeddings import prediction as embeddings
from fineprune.tasks.embeddings.task import EmbeddingConfig
from fineprune.tasks.named_tasks import expand
from fineprune.tasks.questions import prediction as questions
from fineprune.tasks.questions.task import QuestionAnsweringConfig
from fineprune.tasks.source import Source
from fineprune.tasks.text import prediction as texts
from fineprune.tasks.text.task import ClassificationConfig
from fineprune.tasks.tokens import prediction as tokens
from fineprune.tasks.tokens.task import TokenClassificationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Head = Literal["texts", "values", "tokens", "spans", "embeddings", "next_tokens"]
"""The form of a model's answers, by which a student is compared with its teacher. Of no kind here are the
next tokens of a language model."""


@dataclass(frozen=True)
class Kind:
    """One kind of task."""

    name: str
    """`kind` in the `task` section of a recipe."""

    suffix: str
    """The end of the names of transformers' classes with this head."""

    config: type[Source]
    """The `task` section; loads the data, which bring the metric, the collator and the head's settings."""

    head: Callable[[Any], Head]
    """Return the form of the answers, given the model's config."""

    predict: Callable[[Any, Any, Asked], list[dict[str, Any]]]
    """Return the answers of a model, given its tokenizer, as objects for JSON."""

    lines: Callable[[Iterable[Mapping[str, Any]]], Iterator[str]]
    """Yield such answers as lines of text."""

    answer_in_place: Callable[[Any, Path | str], None] | None = None
    """Make a transformer without a head answer in this form, given the place that it was loaded from. None:
    transformers has classes with this head."""

    @property
    def auto_class(self) -> str:
        """The Auto class of transformers that gives a model this head."""
        return f"AutoModel{self.suffix if self.answer_in_place is None else ''}"


KINDS = (
    Kind(
        name="classification",
        suffix="ForSequenceClassification",
        config=ClassificationConfig,
        head=lambda config: "values" if getattr(config, "num_labels", None) == 1 else "texts",
        predict=texts.predict_rows,
        lines=texts.text_lines,
    ),
    Kind(
        name="question_answering",
        suffix="ForQuestionAnswering",
        config=QuestionAnsweringConfig,
        head=lambda config: "spans",
        predict=questions.predict_rows,
        lines=questions.text_lines,
    ),
    Kind(
        name="token_classification",
        suffix="ForTokenClassification",
        config=TokenClassificationConfig,
        head=lambda config: "tokens",
        predict=tokens.predict_rows,
        lines=tokens.text_lines,
    ),
    Kind(
        name="embedding",
        suffix="ForSentenceEmbedding",
        config=EmbeddingConfig,
        head=lambda config: "embeddings",
        predict=embeddings.predict_rows,
        lines=embeddings.text_lines,
        answer_in_place=embeddings.answer_in_place,
    ),
)


def kind_named(name: Any) -> Kind:
    """Return the kind that a recipe calls `name`.

    Raises:
        FinepruneError: no kind has this name.
    """
    known = {kind.name: kind for kind in KINDS}
    return known[choose(name, known, "task.kind")]


def kind_of(model: Any) -> Kind | None:
    """Return the kind of a model, by the name of its class or of a class that it inherits from."""
    for base in type(model).__mro__:
        for kind in KINDS:
            if base.__name__.endswith(kind.suffix):
                return kind
    return None


def task_config(values: Mapping[str, Any] | str) -> Source:
    """Return the settings of a `task` section, by its `kind`, or by the `name` of a known task.

    Args:
        values: the section; a string is a name.

    Raises:
        FinepruneError: an unknown kind, name or setting, or settings that contradict each other.
    """
    if isinstance(values, str):
        values = {"name": values}
    if not isinstance(values, Mapping):
        raise FinepruneError(f"task: expected a mapping of settings, got {values!r}")
    if "name" in values:
        values = expand(values)
    return kind_named(values.get("kind", "classification")).config.from_dict(values)


def data_for(model: "PreTrainedModel", config: Source) -> TaskData:
    """Read the validation data of a task for a trained model, which determines the labels.

    Raises:
        FinepruneError: the model is of another kind, or the data do not fit it.
    """
    kind = kind_of(model)
    if kind is None or kind.name != config.kind:
        raise FinepruneError(
            f"task: kind is {config.kind!r} but the model is a {type(model).__name__}; "
            "it takes a model that was trained on such a task"
        )
    return config.load(need_train=False, model=model)
