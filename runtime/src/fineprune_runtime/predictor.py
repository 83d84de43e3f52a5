"""Predict without torch: a class for each kind of result. `loading.load` makes them of a model folder."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from fineprune_runtime.answers import best_answers, best_spans, rules_of
from fineprune_runtime.classes import THRESHOLD, all_labels, best_class, one_value
from fineprune_runtime.embeddings import Embeddings
from fineprune_runtime.engine import Encoder
from fineprune_runtime.entities import are_entities, begun_words, entities, word_spans
from fineprune_runtime.errors import EngineError
from fineprune_runtime.heads import Head, softmax
from fineprune_runtime.pooling import Pooling
from fineprune_runtime.questions import read_windows
from fineprune_runtime.results import (
    USUAL_LENGTH,
    USUAL_WINDOW,
    Answer,
    Entity,
    Prediction,
    check_pairs,
    not_finite,
    read_texts,
)
from fineprune_runtime.tokens import Tokens

Floats = NDArray[np.float32]


class Network(NamedTuple):
    """A complete model, from token ids to logits."""

    embeddings: Embeddings
    encoder: Encoder
    head: Head | Pooling

    def __call__(self, ids: Any, mask: Any = None, types: Any = None) -> Floats:
        """Return the logits of a batch, or from a sentence model the vectors of its texts.

        Args:
            ids: token ids, (batch, length).
            mask: (batch, length), nonzero at tokens; None: tokens everywhere.
            types: token types, (batch, length); None: all are 0.

        Returns:
            (batch, classes), or (batch, length, classes) from a model that classifies tokens.

        Raises:
            EngineError: the tables of the model lack an id or a type, there are too many tokens or none, or
                an array has another shape.
        """
        ids = np.asarray(ids, dtype=np.int64)
        types = None if types is None else np.asarray(types, dtype=np.int64)
        if ids.ndim != 2 or not ids.shape[1]:
            raise EngineError(f"ids have the shape {ids.shape}, expected (batch, length), of 1 token or more")
        for name, given in (("mask", mask), ("types", types)):
            if given is not None and np.shape(given) != ids.shape:
                raise EngineError(f"{name} has the shape {np.shape(given)}, expected {ids.shape} as ids")
        hidden = self.encoder(self.embeddings(ids, types), mask)
        return self.head(hidden, mask)


class Predictor(ABC):
    """A model with its tokenizer; `load` returns one of the kinds below.

    `network` runs on arrays, `labels` are the names of the classes by id, and `max_length` is the largest
    number of tokens that the model takes.
    """

    usual = USUAL_LENGTH
    paired: bool | None = None
    """Whether the model was trained on pairs of texts; None: its config does not say."""

    def __init__(self, network: Network, tokens: Tokens, names: tuple[str, ...], regression: bool) -> None:
        self.network = network
        self.labels = names
        self.regression = regression
        self._tokens = tokens

    @property
    def encoder(self) -> Encoder:
        """The part of the model that the engine runs."""
        return self.network.encoder

    @property
    def max_length(self) -> int:
        """The largest number of tokens, of a text or of a pair, that the model takes at once."""
        return self._tokens.limit

    @property
    def nbytes(self) -> int:
        """Size of the weights in memory, in bytes."""
        parts = self.network
        return int(parts.embeddings.nbytes + parts.encoder.nbytes + parts.head.nbytes)

    @abstractmethod
    def predict(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Any]:
        """Return a result for each text, in the order given; the subclasses say which."""

    def encode(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Floats:
        """Return the vectors of texts, (texts, features), from a sentence model: see `SentencePredictor`."""
        raise EngineError(
            "encode: this model has the head of a task and gives predictions, not vectors; use predict, or "
            "load a sentence model"
        )

    def logits(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Floats]:
        """Return the logits of each text, or pair, cut to `max_length` tokens.

        Their shape is (classes,), or (tokens, classes) from a model that classifies tokens.
        """
        texts, pairs = read_texts(texts, pairs, batch_size)
        if not texts:
            return []
        check_pairs(self.paired, pairs is not None)
        length = self._tokens.length(max_length, self.usual, pairs is not None)
        return self._run(self._tokens.encode(texts, pairs, length), batch_size)

    def _run(
        self, rows: Sequence[Encoding], batch_size: int, sources: Sequence[int] | None = None
    ) -> list[Floats]:
        """Return the logits of each row without padding. Rows of similar length share a batch.

        Args:
            rows: the tokens.
            batch_size: rows in one batch.
            sources: the index of the text of each row; None: a row is a text.

        Raises:
            EngineError: a logit is NaN or infinite.
        """
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
        logits: dict[int, Floats] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            lengths = [len(rows[index]) for index in batch]
            shape = (len(batch), max(1, lengths[0]))
            # The mask hides padding, but its id must be right: RoBERTa counts positions by it.
            ids = np.full(shape, self.network.embeddings.padding or 0, dtype=np.int64)
            mask = None if lengths[-1] == shape[1] else np.zeros(shape, dtype=np.uint8)
            types = np.zeros(shape, dtype=np.int64) if self._tokens.typed else None
            for place, (index, length) in enumerate(zip(batch, lengths, strict=True)):
                ids[place, :length] = rows[index].ids
                if mask is not None:
                    mask[place, :length] = 1
                if types is not None:
                    types[place, :length] = rows[index].type_ids
            given = types if types is not None and types.any() else None  # of single texts all are 0
            for index, values in zip(batch, self.network(ids, mask, given), strict=True):
                logits[index] = values[: len(rows[index])] if values.ndim == 2 else values
                if not np.isfinite(logits[index]).all():
                    raise not_finite(index if sources is None else int(sources[index]))
        return [logits[index] for index in range(len(rows))]


class TextPredictor(Predictor):
    """A predictor of a class or, in a regression, a number, for texts or pairs of texts."""

    sigmoid = False
    """Whether a score is the sigmoid of its logit, as in most cross-encoders."""

    def predict(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Prediction]:
        """Return the prediction for each text, or pair of texts, in the order given.

        Args:
            texts: the texts, or the first texts of the pairs.
            pairs: the second texts.
            batch_size: texts in one batch.
            max_length: tokens to which texts are cut; None: those of its run (fineprune_max_length in
                config.json), else 128, or the model's limit if that is less.

        Raises:
            EngineError: a single string, a text that is not a string, `pairs` of another length, or an
                invalid `max_length` or `batch_size`.
        """
        logits = self.logits(texts, pairs, batch_size=batch_size, max_length=max_length)
        if self.regression:
            return one_value(logits, self.sigmoid)
        return best_class(logits, self.labels, self.sigmoid)


class MultiLabelPredictor(Predictor):
    """A predictor of any number of labels for texts or pairs of texts."""

    def predict(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        threshold: float = THRESHOLD,
    ) -> list[list[Prediction]]:
        """Return the labels of each text whose probability is at least `threshold`, the best first.

        The other arguments and the errors are those of `TextPredictor.predict`.
        """
        logits = self.logits(texts, pairs, batch_size=batch_size, max_length=max_length)
        return all_labels(logits, self.labels, threshold)


class EntityPredictor(Predictor):
    """A predictor of the entities in texts, or of the tag of each word if tags do not mark entities."""

    def predict(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[list[Entity]]:
        """Return the entities of each text, in the order given.

        Words are separated by white space. The tag of a word is that of its first token.

        Args:
            texts: the texts.
            pairs: must be None.
            batch_size: pieces of texts in one batch.
            max_length: tokens of a piece, in which long texts are read; None: those of its run
                (fineprune_max_length in config.json), else 128, or the model's limit if that is less.

        Raises:
            EngineError: as `TextPredictor.predict`, and for `pairs`.
        """
        texts, _ = read_texts(texts, None, batch_size)
        if pairs is not None:
            raise EngineError("predict: this model finds entities, in single texts; leave pairs out")
        if not texts:
            return []
        length = self._tokens.length(max_length, self.usual, pairs=False)
        rows: list[Encoding] = []
        sources: list[int] = []
        for source, encoding in enumerate(self._tokens.encode(texts, None, length)):
            rows += [encoding, *encoding.overflowing]
            sources += [source] * (1 + len(encoding.overflowing))
        words = [word_spans(text) for text in texts]
        starts = [[start for start, _ in spans] for spans in words]
        places = begun_words(texts, starts, sources, [row.offsets for row in rows])
        tags: list[dict[int, tuple[str, float]]] = [{} for _ in texts]  # tag and probability of each word
        for (source, begun), values in zip(places, self._run(rows, batch_size, sources), strict=True):
            shares = softmax(values)
            best = shares.argmax(axis=-1)
            for at, word in enumerate(begun):
                if word is not None:
                    tags[source][word] = (self.labels[best[at]], float(shares[at, best[at]]))
        plain = not are_entities(self.labels)
        return [
            list(entities(text, spans, word_tags, plain))
            for text, spans, word_tags in zip(texts, words, tags, strict=True)
        ]


class AnswerPredictor(Predictor):
    """A predictor of the answers to questions, as parts of their contexts."""

    usual = USUAL_WINDOW
    unanswerable = False
    """Whether the model was trained on questions without an answer, as its config says."""

    def predict(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        **rules: Any,
    ) -> list[Answer]:
        """Return the best answer to each question in its context.

        Args:
            texts: the questions.
            pairs: the context of each question. Long contexts are read in windows that overlap.
            batch_size: windows in one batch.
            max_length: tokens of a window; None: those of its run (fineprune_max_length in config.json), else
                384, or the model's limit if that is less.
            **rules: the fields of `AnswerRules`. `unanswerable=None` means the setting of the model's config.

        Returns:
            Answer("", …) for "no answer"; Answer("", 0.0, 0, 0) if no part of the context can be the answer.

        Raises:
            EngineError: as `TextPredictor.predict`, and for a rule that is not allowed.
        """
        if pairs is None:
            raise EngineError("predict: the model answers questions; give the context of each as pairs")
        texts, contexts = read_texts(texts, pairs, batch_size)
        assert contexts is not None
        chosen = rules_of(rules)
        if chosen.unanswerable is None:
            chosen = replace(chosen, unanswerable=self.unanswerable)
        if not texts:
            return []
        length = self._tokens.length(max_length, self.usual, pairs=True)
        windows = read_windows(texts, contexts, self._tokens, length, chosen.stride)
        values = np.zeros((2, len(windows.encodings), int(windows.lengths().max())), dtype=np.float32)
        logits = self._run(windows.encodings, batch_size, windows.column("question"))
        for index, row in enumerate(logits):
            values[:, index, : len(row)] = row.T
        spans = best_spans(windows, values[0], values[1], chosen)
        return [candidates[0] for candidates in best_answers(spans, contexts)]
