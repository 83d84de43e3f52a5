"""From a model folder to answers, without torch: `load(DIR).predict(texts)`."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from fineprune_runtime.answers import AnswerRules, best_answers, best_spans
from fineprune_runtime.architectures import architecture, each_layer, matrix_shapes, settings, task
from fineprune_runtime.codec import DENSE_FROM
from fineprune_runtime.embeddings import Embeddings, read_embeddings
from fineprune_runtime.engine import Encoder
from fineprune_runtime.entities import are_entities, begun_words, entities, word_spans
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.heads import Head, labels, read_head, softmax
from fineprune_runtime.layers import Matrix
from fineprune_runtime.questions import read_windows
from fineprune_runtime.results import Answer, Entity, Prediction, check_texts
from fineprune_runtime.tokens import Tokens

Floats = NDArray[np.float32]

USUAL_LENGTH = 128  # tokens of a text; fineprune's own predict and its recipes have it too
USUAL_WINDOW = 384  # tokens of a question and a stretch of its context

_log = logging.getLogger("fineprune_runtime")


class Network(NamedTuple):
    """A whole model: from token ids to logits."""

    embeddings: Embeddings
    encoder: Encoder
    head: Head

    def __call__(self, ids: Any, mask: Any = None, types: Any = None) -> Floats:
        """Logits of token ids (batch, length): (batch, classes), or (batch, length, classes) where the
        model answers token by token.

        `mask` is nonzero where a token is, all of them without it; `types` are token types. Raises
        `EngineError` for ids and types that the model's tables lack, and for too many tokens.
        """
        ids = np.asarray(ids, dtype=np.int64)
        types = None if types is None else np.asarray(types, dtype=np.int64)
        return self.head(self.encoder(self.embeddings(ids, types), mask))


class Predictor(ABC):
    """A model with its tokenizer; `load` makes one of the kinds below.

    `network` takes arrays, `labels` are the classes by id, `max_length` is the most tokens that the
    model takes.
    """

    usual = USUAL_LENGTH

    def __init__(self, network: Network, tokens: Tokens, names: tuple[str, ...], regression: bool) -> None:
        self.network = network
        self.labels = names
        self.regression = regression
        self._tokens = tokens

    @property
    def encoder(self) -> Encoder:
        """The engine's part of the model."""
        return self.network.encoder

    @property
    def max_length(self) -> int:
        """The most tokens of a text, or of a pair, that the model takes at once."""
        return self._tokens.limit

    @property
    def nbytes(self) -> int:
        """What the weights take in memory."""
        parts = self.network
        return int(parts.embeddings.nbytes + parts.encoder.nbytes + parts.head.nbytes)

    @abstractmethod
    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Any]:
        """An answer to each text, in the order given; each kind says which."""

    def logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Floats]:
        """What the model says of each text, or pair, cut to `max_length` tokens: (classes,), or
        (tokens, classes) where it answers token by token.
        """
        check_texts(texts, pairs, batch_size)
        if not texts:
            return []
        length = self._tokens.length(max_length, self.usual, pairs is not None)
        return self._run(self._tokens.encode(texts, pairs, length), batch_size)

    def _run(self, rows: Sequence[Encoding], batch_size: int) -> list[Floats]:
        """The logits of each row without padding, rows of similar length in one batch."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
        found: dict[int, Floats] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            shape = (len(batch), max(1, len(rows[batch[0]])))
            # The id of padding is not looked at, but RoBERTa's positions are counted by it.
            ids = np.full(shape, self.network.embeddings.padding or 0, dtype=np.int64)
            mask, types = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=np.int64)
            for place, index in enumerate(batch):
                length = len(rows[index])
                ids[place, :length] = rows[index].ids
                mask[place, :length] = 1
                if self._tokens.typed:
                    types[place, :length] = rows[index].type_ids
            for index, values in zip(batch, self.network(ids, mask, types), strict=True):
                found[index] = values[: len(rows[index])] if values.ndim == 2 else values
        return [found[index] for index in range(len(rows))]


class TextPredictor(Predictor):
    """Answers texts, or pairs of them, with a class or, as a regression, with a number."""

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[Prediction]:
        """Answer each text, or each pair of a text and its `pairs` text, in the order given.

        Texts are cut to `max_length` tokens; None: 128, or what the model takes if that is less. Raises
        `EngineError` for a single string, a text that is not a string, `pairs` of another length,
        and a `max_length` or `batch_size` that cannot be.
        """
        values = self.logits(texts, pairs, batch_size=batch_size, max_length=max_length)
        if self.regression:
            return [Prediction(None, float(row[0])) for row in values]
        shares = [softmax(row) for row in values]
        best = [int(row.argmax()) for row in shares]
        return [Prediction(self.labels[at], float(row[at])) for at, row in zip(best, shares, strict=True)]


class EntityPredictor(Predictor):
    """Finds the entities of texts, or the tag of each word where tags are not of entities."""

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> list[list[Entity]]:
        """The entities of each text, in the order given; words are what stands between white space.

        A word's tag is that of its first token. Long texts are read in pieces of `max_length` tokens;
        None: 128, or what the model takes if that is less. Raises `EngineError` as
        `TextPredictor.predict`, and for `pairs`.
        """
        check_texts(texts, None, batch_size)
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
        found: list[dict[int, tuple[str, float]]] = [{} for _ in texts]  # a word's tag and probability
        for (source, begun), values in zip(places, self._run(rows, batch_size), strict=True):
            shares = softmax(values)
            best = shares.argmax(axis=-1)
            for at, word in enumerate(begun):
                if word is not None:
                    found[source][word] = (self.labels[best[at]], float(shares[at, best[at]]))
        plain = not are_entities(self.labels)
        return [
            list(entities(text, spans, tags, plain))
            for text, spans, tags in zip(texts, words, found, strict=True)
        ]


class AnswerPredictor(Predictor):
    """Finds the answers to questions in contexts."""

    usual = USUAL_WINDOW
    unanswerable = False
    """Whether the model was trained on questions without an answer, as its config says."""

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        **rules: Any,
    ) -> list[Answer]:
        """Return the best answer to each question of `texts` in the context of `pairs` at the same place.

        Args:
            texts: the questions.
            pairs: their contexts. One longer than `max_length` is read in windows that overlap.
            batch_size: windows in one batch.
            max_length: tokens of a window; None: 384, or what the model takes if that is less.
            **rules: the fields of `AnswerRules`. `unanswerable=None` is what the model's configuration says.

        Returns:
            Answer("", …) for "no answer"; Answer("", 0.0, 0, 0) for a context in which nothing can be the
            answer.

        Raises:
            EngineError: as `TextPredictor.predict`, and for a rule that is not allowed.
        """
        if pairs is None:
            raise EngineError("predict: the model answers questions; give the context of each as pairs")
        check_texts(texts, pairs, batch_size)
        chosen = AnswerRules(**rules)
        if chosen.unanswerable is None:
            chosen = replace(chosen, unanswerable=self.unanswerable)
        if not texts:
            return []
        length = self._tokens.length(max_length, self.usual, pairs=True)
        windows = read_windows(texts, pairs, self._tokens, length, chosen.stride)
        values = np.zeros((2, len(windows.encodings), int(windows.lengths().max())), dtype=np.float32)
        for index, row in enumerate(self._run(windows.encodings, batch_size)):
            values[:, index, : len(row)] = row.T
        spans = best_spans(windows, values[0], values[1], chosen)
        return [known[0] for known in best_answers(spans, list(pairs))]


_KINDS: dict[str, type[Predictor]] = {
    "text": TextPredictor,
    "tokens": EntityPredictor,
    "questions": AnswerPredictor,
}


def load(folder: str | Path, dtype: str = "float32", threads: int | None = None) -> Predictor:
    """The model of a folder, ready to answer: of one that fineprune packed, or of safetensors as they are.

    `dtype` is what the encoder calculates with, "float32", "bfloat16" or "int8"; `threads`: None is
    one for each core. The model is a classifier of texts, of tokens, or answers questions, and a BERT,
    RoBERTa, XLM-RoBERTa, ELECTRA or DistilBERT. Raises `EngineError` for a folder that is no whole model,
    an architecture that the engine cannot run, and a dtype that this processor does not have.
    """
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise EngineError(f"threads is {threads!r}, expected a whole number, 1 or more")
    opened = Folder(folder)
    config = opened.config
    kind = task(config)
    prefix = f"{architecture(config).base}."
    embeddings, head, names = read_embeddings(opened, prefix), read_head(opened), labels(config)
    tokens = Tokens(opened, embeddings.limit)
    encoder = _encoder(opened, prefix, dtype, threads)
    regression = config.get("problem_type") == "regression" or len(names) == 1
    made = _KINDS[kind](Network(embeddings, encoder, head), tokens, names, regression)
    if isinstance(made, AnswerPredictor):
        made.unanswerable = config.get("unanswerable_questions") is True
    return made


def _encoder(folder: Folder, prefix: str, dtype: str, threads: int) -> Encoder:
    """The encoder of a folder's model; says so where nothing of it was pruned."""
    shapes = matrix_shapes(folder.config)
    start = f"{prefix}{architecture(folder.config).layer}."
    kept = total = 0

    def matrix(name: str) -> Matrix:
        nonlocal kept, total
        made = folder.matrix(name, shapes[name.removeprefix(start).partition(".")[2]])
        kept, total = kept + len(made.values), total + made.shape[0] * made.shape[1]
        return made

    # One layer at a time: its matrices take more memory than what the encoder makes of them.
    layers = each_layer(folder.config, matrix, folder.vector, prefix)
    encoder = Encoder(layers, **settings(folder.config), dtype=dtype, threads=threads)
    if kept > DENSE_FROM * total:
        _log.warning("%s: was never pruned, %.0f %% is left: it runs dense", folder.path, 100 * kept / total)
    return encoder
