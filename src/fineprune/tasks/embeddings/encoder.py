"""Make a transformer answer with the embedding of a text, as its Sentence Transformers folder says.

The class of a model stays what it is for everything that saves, prunes or shrinks it; only `forward` returns
the pooled vector, so that a trainer and a teacher compare embeddings as they compare logits.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.utils import ModelOutput

from fineprune.tasks.embeddings.sentence import Sentence, read_sentence


def as_sentence_encoder(model: Any, place: Path | str) -> None:
    """Make a transformer without a head answer with embeddings, in place.

    Args:
        model: the transformer.
        place: the Sentence Transformers folder, or name on the hub, that it was loaded from.

    Raises:
        FinepruneError: as `read_sentence`.
    """
    sentence = read_sentence(place)
    base: Any = type(model)
    model.__class__ = _class_of(base)
    model.sentence = sentence


class EncoderForSentenceEmbedding:
    """A transformer without a head whose output has the embedding as `logits`."""

    sentence: Sentence
    group_loss: Callable[[Tensor, Tensor], Tensor]
    """A `losses.GroupLoss`, of a model that learns labeled texts."""

    def save_pretrained(self, folder: Any, *args: Any, **kwargs: Any) -> None:
        """Write the transformer, and the files of sentence-transformers beside it."""
        super().save_pretrained(folder, *args, **kwargs)  # type: ignore[misc]
        self.sentence.write(Path(folder))


@functools.cache
def _class_of(base: Any) -> Any:
    """Return a class like `base` that answers with embeddings; it has the same name, for config.json."""

    def forward(self: Any, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> ModelOutput:
        outputs = base.forward(self, *args, **kwargs)
        embeddings = pooled(self.sentence, outputs.last_hidden_state, kwargs.get("attention_mask"))
        if labels is None:  # the teacher is the only one who says what is right
            loss = embeddings.sum() * 0
        elif labels.dim() == 1:  # of labeled texts
            loss = self.group_loss(embeddings, labels)
        else:
            loss = embedding_distance(embeddings, labels)
        answer = {"loss": loss, "logits": embeddings}
        if outputs.get("hidden_states"):
            answer["hidden_states"] = outputs.hidden_states
        return ModelOutput(answer)

    signature = inspect.signature(base.forward)
    names = [entry for entry in signature.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
    last = inspect.Parameter("labels", inspect.Parameter.KEYWORD_ONLY, default=None)
    forward.__signature__ = signature.replace(parameters=[*names, last])  # type: ignore[attr-defined]
    about = {"__module__": base.__module__, "__doc__": base.__doc__, "forward": forward}
    return type(base.__name__, (EncoderForSentenceEmbedding, base), about)


def pooled(sentence: Sentence, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return the embeddings in float32, (rows, features).

    Args:
        sentence: how to pool.
        hidden: the last hidden states, (rows, positions, width).
        mask: 1 for tokens, 0 for padding, (rows, positions); None: no padding.
    """
    hidden = hidden.float()
    mask = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.float()
    tokens = mask.unsqueeze(-1)
    parts = []
    for mode in sentence.modes:
        if mode == "cls":
            parts.append(hidden[torch.arange(len(hidden), device=hidden.device), mask.argmax(1)])
        elif mode == "max":
            parts.append(hidden.masked_fill(tokens == 0, torch.finfo(torch.float32).min).amax(1))
        else:
            count = tokens.sum(1).clamp(min=1e-9)
            parts.append((hidden * tokens).sum(1) / (count if mode == "mean" else count.sqrt()))
    vector = torch.cat(parts, dim=-1)
    if sentence.normalize:
        vector = functional.normalize(vector, dim=-1)
    return vector[..., : sentence.size]  # after the norm, as in sentence-transformers


def embedding_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over the rows of |s − t|² / 2|t|², which is 1 − cosine for vectors of length 1.

    Args:
        student: its embeddings, (rows, features).
        teacher: the teacher's, likewise.
    """
    student, teacher = student.float(), teacher.float()
    lengths = teacher.square().sum(-1).clamp(min=1e-12)
    return ((student - teacher).square().sum(-1) / (2 * lengths)).mean()
