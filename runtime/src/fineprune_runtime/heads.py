"""Turn the output of the encoder into a logit for each class, or for each class and token."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.architectures import architecture, task, whole
from fineprune_runtime.dense import Dense
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder

Floats = NDArray[np.float32]

_erf = np.vectorize(math.erf, otypes=[np.float32])  # numpy has no erf; there is one row for each text


class Head(NamedTuple):
    """A linear layer on every token; in a text classifier it follows a pooler, a layer on the first token."""

    out: Dense
    pooler: Dense | None = None
    activation: str = ""

    def __call__(self, hidden: Floats) -> Floats:
        """Return the logits for the output of the encoder.

        Args:
            hidden: that output, (batch, length, hidden).

        Returns:
            (batch, classes) with a pooler, else (batch, length, classes).
        """
        if self.pooler is None:
            return self.out(hidden)
        return self.out(_activate(self.pooler(hidden[:, 0]), self.activation))

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return sum(layer.nbytes for layer in (self.out, self.pooler) if layer)


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

    def dense(name: str, outputs: int) -> Dense:
        bias = folder.dense(f"{name}.bias", (outputs,))  # first: its size in the file limits the weight's
        return Dense(folder.dense(f"{name}.weight", (outputs, hidden)), bias)

    kind = task(config)
    if kind == "tokens":
        return Head(dense("classifier", classes))
    if kind == "questions":
        if classes != 2:
            raise EngineError(f"config.json names {classes} labels; starts and ends of answers are 2")
        return Head(dense("qa_outputs", 2))
    first, activation, last = architecture(config).pooled
    return Head(dense(last, classes), dense(first, hidden), activation)


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
    result: Floats = x * np.float32(0.5) * (1 + _erf(x * np.float32(math.sqrt(0.5))))  # "gelu"
    return result
