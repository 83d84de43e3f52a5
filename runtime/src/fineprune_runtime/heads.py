"""Turn the output of the encoder into a logit for each class, or for each class and token."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.architectures import architecture, epsilon, task, whole
from fineprune_runtime.dense import Dense
from fineprune_runtime.embeddings import read_norm
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.layers import Norm, layer_norm

Floats = NDArray[np.float32]

# The error function as a quotient of polynomials, good to 1e-7, the highest power first (of Eigen).
_ERF = (
    (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
     -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
    (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
     -1.42647390514189e-02),
)  # fmt: skip

Rows = Literal["first", "mean", "every"]


class Head(NamedTuple):
    """A linear layer, mostly behind a pooler: a layer with an activation, and a norm in ModernBERT."""

    out: Dense
    pooler: Dense | None = None
    activation: str = ""
    norm: Norm | None = None
    epsilon: float = 0.0
    rows: Rows = "first"
    """What the pooler reads: the first token of a text, the mean of its tokens, or every token."""

    def __call__(self, hidden: Floats, mask: Any = None) -> Floats:
        """Return the logits for the output of the encoder.

        Args:
            hidden: that output, (batch, length, hidden).
            mask: (batch, length), nonzero at tokens; None: tokens everywhere.

        Returns:
            (batch, classes) with a pooler of texts, else (batch, length, classes).
        """
        if self.pooler is None:
            return self.out(hidden)
        x = _activate(self.pooler(self._read(hidden, mask)), self.activation)
        return self.out(x if self.norm is None else layer_norm(x, self.norm, self.epsilon))

    def _read(self, hidden: Floats, mask: Any) -> Floats:
        if self.rows != "mean":
            return hidden if self.rows == "every" else hidden[:, 0]
        # Each text without its padding, so that its mean does not depend on the batch.
        texts = hidden if mask is None else [row[kept != 0] for row, kept in zip(hidden, mask, strict=True)]
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the logits
            return np.stack([text.sum(axis=0) / np.float32(max(1, len(text))) for text in texts])

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        parts = (self.out, self.pooler, *(self.norm or ()))
        return sum(int(part.nbytes) for part in parts if part is not None)


def class_count(config: Mapping[str, Any]) -> int:
    """Return the number of classes: that of the names in config.json, else `num_labels`, else 2.

    Raises:
        EngineError: id2label does not name the ids 0, 1, 2, …
    """
    named = config.get("id2label")
    if named is None:
        return whole(config, "num_labels", 2)
    if not isinstance(named, dict) or not named or set(named) != {str(index) for index in range(len(named))}:
        raise EngineError(
            f"id2label in config.json is {repr(named)[:80]}, expected names for the ids 0, 1, 2, …"
        )
    return len(named)


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in the order of their ids; LABEL_0, LABEL_1, … if config.json has none.

    Call `read_head` first, which compares their number with the weights.
    """
    count, named = class_count(config), config.get("id2label")
    if named is None:
        return tuple(f"LABEL_{index}" for index in range(count))
    return tuple(str(named[str(index)]) for index in range(count))


def read_head(folder: Folder) -> Head:
    """Return the head of the model in a folder.

    Raises:
        EngineError: config.json or the weights do not fit a task that can run here.
    """
    config = folder.config
    hidden, classes = whole(config, "hidden_size"), class_count(config)

    def dense(name: str, outputs: int, biased: bool = True) -> Dense:
        # The bias first: its size in the file limits the weight's.
        bias = folder.dense(f"{name}.bias", (outputs,)) if biased else np.zeros(outputs, np.float32)
        return Dense(folder.dense(f"{name}.weight", (outputs, hidden)), bias)

    kind, known = task(config), architecture(config)
    if kind == "questions" and classes != 2:
        raise EngineError(f"config.json names {classes} labels; starts and ends of answers are 2")
    first, activation, last = known.pooled
    if config["model_type"] == "modernbert":
        return Head(
            dense(last, classes),
            dense(first, hidden, config.get("classifier_bias", False) is True),
            _choice(config, "classifier_activation", activation, ("gelu", "relu", "tanh")),
            read_norm(folder, "head.norm", hidden),
            epsilon(config),
            _pooling(config) if kind == "text" else "every",
        )
    if kind == "text":
        if config["model_type"] == "deberta-v2":
            size = config.get("pooler_hidden_size", hidden)
            if size != hidden:
                raise EngineError(f"pooler_hidden_size in config.json is {size!r}, expected {hidden}")
            activation = _choice(config, "pooler_hidden_act", activation, ("gelu", "relu", "tanh"))
        return Head(dense(last, classes), dense(first, hidden), activation)
    return Head(dense("classifier" if kind == "tokens" else "qa_outputs", classes))


def _pooling(config: Mapping[str, Any]) -> Rows:
    return "mean" if _choice(config, "classifier_pooling", "cls", ("cls", "mean")) == "mean" else "first"


def _choice(config: Mapping[str, Any], key: str, usual: str, allowed: tuple[str, ...]) -> str:
    value = config.get(key, usual)
    if value not in allowed:
        raise EngineError(
            f"{key} in config.json is {value!r}, allowed are {', '.join(allowed)}: run this model with torch"
        )
    return str(value)


def softmax(logits: Floats) -> Floats:
    """Return the probabilities of logits over the last dimension."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result


def _activate(x: Floats, activation: str) -> Floats:
    if activation == "tanh":
        return np.tanh(x)
    if activation == "relu":
        return np.maximum(x, np.float32(0))
    z = np.clip(x * np.float32(math.sqrt(0.5)), -3.925, 3.925)  # "gelu": x / 2 (1 + erf(x / sqrt(2)))
    over, under = (np.polyval(np.array(part, np.float32), z * z) for part in _ERF)
    half: Floats = x * np.float32(0.5)
    result: Floats = half + half * (z * over / under)
    return result
