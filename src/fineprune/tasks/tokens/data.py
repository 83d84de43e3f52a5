"""Tagged sentences, as rows for a trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from fineprune.tasks.data import Evaluation, by_length
from fineprune.tasks.model_config import label_settings
from fineprune.tasks.tokens.metrics import compute_metrics
from fineprune.tasks.tokens.word_windows import join, tokenize_words

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_PLACE = "place"


@dataclass(frozen=True)
class Tagged:
    """Sentences, and the id of each word's tag."""

    words: list[list[str]]
    tags: list[list[int]]

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True)
class TokenClassificationData:
    """A task with its data read."""

    kind: ClassVar[str] = "token_classification"
    train: Tagged | None
    validation: Tagged
    labels: tuple[str, ...]
    """The tags by id."""

    metric: str

    def sizes(self) -> dict[str, int]:
        """Return the number of sentences in "train" and "validation"."""
        return {"train": len(self.train or ()), "validation": len(self.validation)}

    def head(self) -> dict[str, Any]:
        """Return the tags, as settings of the model's config."""
        return label_settings(self.labels)

    def train_rows(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset | None":
        """Return the training sentences as token ids, in order."""
        if self.train is None:
            return None
        return encode(self.train, tokenizer, max_length).remove_columns(_PLACE)

    def evaluation(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Evaluation:
        """Return the validation sentences in order of length, scored by `metrics.compute_metrics`."""
        rows = by_length(encode(self.validation, tokenizer, max_length))
        places = sorted((sentence, part, row) for row, (sentence, part) in enumerate(rows[_PLACE]))
        sentences = [[row for *_, row in rows] for _, rows in groupby(places, lambda place: place[0])]
        return Evaluation(rows.remove_columns(_PLACE), compute_metrics(self.labels, sentences))

    def collator(self, tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[Any]], Any]:
        """Return the function that pads each batch to its longest row, and the labels with -100."""
        from transformers import DataCollatorForTokenClassification

        collate: Callable[[list[Any]], Any] = DataCollatorForTokenClassification(tokenizer)
        return collate


def encode(examples: Tagged, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
    """Tokenize; the label of each word is on its first token, and -100 on all others.

    A sentence that is longer than `max_length` tokens becomes several rows, so no word is lost. Column
    `place` has the number of the sentence and of the first word that begins in the row.
    """
    from datasets import Dataset

    texts, starts = zip(*map(join, examples.words), strict=True)
    columns, places = tokenize_words(texts, starts, tokenizer, max_length)
    columns["labels"] = [
        [-100 if word is None else examples.tags[sentence][word] for word in words]
        for sentence, words in places
    ]
    columns[_PLACE] = [
        [sentence, next((word for word in words if word is not None), 0)] for sentence, words in places
    ]
    return Dataset.from_dict(columns)
