"""Token classification, such as named entities: a tag for each word, scored as seqeval scores entities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune._extras import require
from fineprune._messages import listing, near
from fineprune._validation import check_keys
from fineprune.errors import FinepruneError
from fineprune.tasks.text.task import by_length, check_source, check_text
from fineprune.tasks.tokens.files import Sentence, read_hub_sentences, read_sentences
from fineprune.tasks.tokens.word_windows import join, windows
from fineprune_runtime.entities import are_entities

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

METRICS = ("f1", "precision", "recall", "accuracy")
MOST_TAGS = 1000  # of which no labels are given: more, and the column is hardly one of tags


@dataclass(frozen=True)
class TokenClassificationConfig:
    """Where the words and tags of a task are. Raises `FinepruneError` for contradictions.

    `train`, `validation`: local files, CoNLL (a word and its tag a line, a blank line between
    sentences) or tables (JSONL, Parquet). Or `hub`, `subset` and two splits: a data set on the
    Hugging Face hub. `words`, `tags`: their columns; of CoNLL files numbers from 0 (None: the first
    and the last), else names (None: `tokens`, and `ner_tags` or `tags`). `labels`: the tags in the
    order of their numbers; None: found in the training data. `metric`: the main one of f1,
    precision, recall (of entities) and accuracy (of words); None: f1 where the tags are of
    entities (B-PER, I-PER, ... and O), else accuracy.
    """

    kind: str = "token_classification"
    train: str | None = None
    validation: str | None = None
    hub: str | None = None
    subset: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    words: str | int | None = None
    tags: str | int | None = None
    labels: tuple[str, ...] | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        labels: Any = self.labels  # YAML makes a list of it
        if isinstance(labels, list):
            object.__setattr__(self, "labels", tuple(labels))
        if self.kind != "token_classification":
            raise FinepruneError(f"task: kind is {self.kind!r}, expected 'token_classification'")
        for name in ("train", "validation", "hub", "subset", "metric"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        for name in ("train_split", "validation_split"):
            check_text(name, getattr(self, name))
        for name in ("words", "tags"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (value is None or isinstance(value, int)):
                check_text(name, value)
        check_source(self)
        self._check_labels()
        if self.metric is not None and self.metric not in METRICS:
            close = near(self.metric, METRICS, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise FinepruneError(f"task: unknown metric {self.metric!r}; {hint}allowed: {', '.join(METRICS)}")

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        if not isinstance(self.labels, tuple) or len(self.labels) < 2:
            raise FinepruneError(f"task: labels is {self.labels!r}, expected a list of two or more tags")
        for label in self.labels:
            check_text("labels", label)
            if self.labels.count(label) > 1:
                raise FinepruneError(f"task: labels has {label!r} twice")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TokenClassificationConfig":
        """Make one from the `task` section of a recipe; unknown settings are errors."""
        check_keys(values, [setting.name for setting in fields(cls)], "task")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values for YAML or JSON; `from_dict` makes an equal config of them."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def with_validation(self, path: str) -> "TokenClassificationConfig":
        """The same task scored on another file, without training data."""
        usual: dict[str, Any] = {"train_split": "train", "validation_split": "validation"}
        return replace(self, train=None, validation=path, hub=None, subset=None, **usual)

    def load(
        self, need_train: bool = True, model: "PreTrainedModel | None" = None
    ) -> "TokenClassificationData":
        """Read the data; what the tags are, says `model`, else `labels`, else the hub or the training data.

        Raises `FinepruneError`, with file and line where there is one: no training data while
        `need_train`, a tag that is missing or not known, only one tag.
        """
        if need_train and self.hub is None and self.train is None:
            raise FinepruneError("task: no training data; give a `train` file")
        train, named = self._read(self.train, self.train_split) if need_train else (None, None)
        validation, hub_names = self._read(self.validation, self.validation_split)
        names = named or hub_names
        if model is not None:
            known = self._of_model(model)
        elif self.labels or names:
            known = self.labels or names or ()
        elif train is None:
            raise FinepruneError("task: the tags are not known without training data; give `labels`")
        else:
            known = infer_tags(train)
        encoded = None if train is None else tag_ids(train, known, named)
        if encoded is not None and len({tag for sentence in encoded for tag in sentence}) < 2:
            raise FinepruneError(
                f"{train[0].place if train else ''}: every word has the same tag; two or more are needed"
            )
        return TokenClassificationData(
            None if train is None or encoded is None else _tagged(train, encoded),
            _tagged(validation, tag_ids(validation, known, hub_names)),
            known,
            self._main_metric(known),
        )

    def _read(self, path: str | None, split: str) -> tuple[list[Sentence], tuple[str, ...] | None]:
        if self.hub is not None:
            return read_hub_sentences(self.hub, self.subset, split, self.words, self.tags)
        return read_sentences(str(path), self.words, self.tags), None

    def _of_model(self, model: "PreTrainedModel") -> tuple[str, ...]:
        if "ForTokenClassification" not in type(model).__name__:
            raise FinepruneError(
                f"task: kind is {self.kind!r} but the model is a {type(model).__name__}; "
                "it takes a model that was trained on such a task"
            )
        known = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
        if self.labels is not None and self.labels != known:
            raise FinepruneError(
                f"task: labels is {list(self.labels)} but the model has {listing(known)}; remove labels"
            )
        return known

    def _main_metric(self, known: Sequence[str]) -> str:
        if not are_entities(known):
            if self.metric not in (None, "accuracy"):
                plain = next(tag for tag in known if not are_entities([tag]))
                raise FinepruneError(
                    f"task: metric {self.metric!r} is of entities, but the tag {plain!r} is neither O "
                    "nor B-, I-, E- or S- with a type; use accuracy"
                )
            return "accuracy"
        return self.metric or "f1"


@dataclass(frozen=True)
class Tagged:
    """Sentences and, of each word, the id of its tag."""

    words: list[list[str]]
    tags: list[list[int]]

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True)
class TokenClassificationData:
    """A task with its data read: `labels` are the tags by id."""

    train: Tagged | None
    validation: Tagged
    labels: tuple[str, ...]
    metric: str
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"

    def sizes(self) -> dict[str, int]:
        """Sentences in "train" and "validation"."""
        return {"train": len(self.train or ()), "validation": len(self.validation)}

    def head(self) -> dict[str, Any]:
        """The tags, as settings of the model's config."""
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """The training sentences as token ids, in order."""
        return None if self.train is None else encode(self.train, tokenizer, max_length)

    def validation_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
        """The validation sentences in order of length: batches need little padding."""
        return by_length(encode(self.validation, tokenizer, max_length))

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Pads each batch to its longest row, and the labels with -100."""
        from transformers import DataCollatorForTokenClassification

        padded: Callable[[list[Any]], Any] = DataCollatorForTokenClassification(tokenizer)
        return padded

    def compute_metrics(self) -> "Callable[[EvalPrediction], dict[str, float]]":
        """Accuracy over words; of tags of entities also F1, precision and recall over entities."""
        return compute_metrics(self.labels)


def encode(examples: Tagged, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
    """Token ids, with the label of each word on its first token and -100 on all others.

    A sentence that is longer than `max_length` tokens becomes several rows, so no word is lost.
    """
    from datasets import Dataset

    texts, starts = zip(*map(join, examples.words), strict=True)
    columns, places = windows(texts, starts, tokenizer, max_length)
    columns["labels"] = [
        [-100 if word is None else examples.tags[sentence][word] for word in words]
        for sentence, words in places
    ]
    return Dataset.from_dict(columns)


def compute_metrics(labels: Sequence[str]) -> "Callable[[EvalPrediction], dict[str, float]]":
    """The function that a `transformers.Trainer` scores tags with.

    It takes logits of shape (rows, tokens, labels) beside label ids of shape (rows, tokens), where -100
    does not count. Entities are seqeval's: an I- without a B- before it begins one, as in conlleval.
    """
    require("recipes", "scoring")

    def score(evaluation: "EvalPrediction") -> dict[str, float]:
        import numpy as np
        from seqeval import metrics

        logits = evaluation.predictions
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        truth = np.asarray(evaluation.label_ids)
        if not np.isfinite(logits).all():
            raise FinepruneError(
                "the model's predictions contain NaN or infinity: training diverged; lower the learning rate"
            )
        counted, guess = truth != -100, logits.argmax(axis=-1)
        known = np.asarray(labels, dtype=object)
        right = [known[row[mask]].tolist() for row, mask in zip(truth, counted, strict=True)]
        guessed = [known[row[mask]].tolist() for row, mask in zip(guess, counted, strict=True)]
        scores = {"accuracy": float((guess == truth)[counted].mean()) if counted.any() else 0.0}
        if are_entities(labels):
            for name in ("f1", "precision", "recall"):
                measure = getattr(metrics, f"{name}_score")
                scores[name] = float(measure(right, guessed, zero_division=0))
        return scores

    return score


def infer_tags(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """The tags that occur, in order: of numbers by value, else by alphabet. Raises `FinepruneError`."""
    distinct: dict[Any, str] = {}
    for sentence in sentences:
        for index, cell in enumerate(sentence.tags):
            _check_cell(sentence, index, cell)
            distinct.setdefault(cell, str(cell))
        if len(distinct) > MOST_TAGS:
            raise FinepruneError(
                f"{sentence.where(0)}: by here more than {MOST_TAGS:,} different tags, such as "
                f"{listing(list(distinct)[:5])}; name the right column with `tags`, or give `labels`"
            )
    numbers = [cell for cell in distinct if isinstance(cell, int)]
    if len(numbers) == len(distinct):
        return tuple(str(cell) for cell in sorted(numbers))
    if numbers:
        texts = [cell for cell in distinct if isinstance(cell, str)]
        raise FinepruneError(
            f"{sentences[0].place}: some tags are numbers ({numbers[0]}), others text ({texts[0]!r}); "
            "give `labels`, or make them one"
        )
    return tuple(sorted(set(distinct.values())))


def tag_ids(
    sentences: Sequence[Sentence], known: Sequence[str], named: Sequence[str] | None = None
) -> list[list[int]]:
    """The id of each tag. A cell is one of `known`, or the number of one; of `named` where those are given.

    Where the `known` tags are numbers themselves, a number is a tag, never a position.
    """
    ids: dict[Any, int] = {tag: index for index, tag in enumerate(known)}
    if named is not None and set(named) <= set(known):
        ids |= {index: ids[tag] for index, tag in enumerate(named)}
    elif named is None and all(tag.isdigit() for tag in known):
        ids |= {int(tag): index for tag, index in list(ids.items())}
    else:
        ids |= {index: index for index in range(len(known))}
    result = []
    for sentence in sentences:
        for index, cell in enumerate(sentence.tags):
            _check_cell(sentence, index, cell)
            if cell not in ids:
                raise FinepruneError(
                    f"{sentence.where(index)}: tag {cell!r} of {sentence.words[index]!r} is not known; "
                    f"known are {listing(known)}. If it is right, list all tags as `labels`"
                )
        result.append([ids[cell] for cell in sentence.tags])
    return result


def _check_cell(sentence: Sentence, index: int, cell: Any) -> None:
    if isinstance(cell, bool) or not isinstance(cell, str | int) or cell in ("", -1, -100):
        raise FinepruneError(f"{sentence.where(index)}: {sentence.words[index]!r} has no tag ({cell!r})")


def _tagged(sentences: Sequence[Sentence], tags: list[list[int]]) -> Tagged:
    return Tagged([sentence.words for sentence in sentences], tags)
