"""The loss of a student that differs from its teacher (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531).

`heads` says which shape the answers of each kind have. Gradients reach the student alone, and everything is
computed in float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fineprune.tasks.embeddings.encoder import embedding_distance
from fineprune.tasks.kinds import Head
from fineprune.training.distillation.layer_pairs import fixed_pairs, nearest_pairs

_EPSILON = torch.finfo(torch.bfloat16).eps  # as in the paper's code

IGNORED = -100
"""The label of tokens that no loss counts."""


def distillation_loss(
    head: Head,
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Return the mean over the batch of the student's loss for differing from its teacher, a scalar.

    Args:
        head: the kind of answers.
        student: its logits.
        teacher: its logits, of the same shape.
        temperature: T of the softened distributions.
        mask: (rows, positions), 1 where a row has a token and 0 in its padding; for spans.
        labels: (rows, positions); for tokens and next tokens.
    """
    teacher = teacher.detach()
    if head == "texts":
        return divergence(student, teacher, temperature).mean()
    if head == "embeddings":
        return embedding_distance(student, teacher)
    if head == "values":
        return squared_error(student, teacher)
    if head == "tokens":
        return token_divergence(student, teacher, temperature, labels)
    if head == "next_tokens":
        return next_token_divergence(student, teacher, temperature, labels)
    return span_divergence(student, teacher, temperature, mask)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(teacher / T) ‖ softmax(student / T)) over the last dimension.

    T² keeps the size of the gradients at any temperature (section 2 of the paper).
    """
    own = functional.log_softmax(student.float() / temperature, dim=-1)
    target = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(own, target, reduction="none", log_target=True).sum(-1) * temperature**2


def span_divergence(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return the divergence over the positions of a row, mean of start and end, mean over the rows.

    Padding is left out: it holds no answer, and its logits depend on the other rows of the batch. A trained
    teacher gives it almost nothing, so this is the divergence over the padded width except for −log of the
    share that the student gives to the row itself, which the task loss asks for.
    """
    student, teacher = student.float(), teacher.float()
    if mask is not None:
        padding, lowest = mask.unsqueeze(-1) == 0, -1e30 * temperature  # finite: 0 · ∞ is not a number
        student, teacher = student.masked_fill(padding, lowest), teacher.masked_fill(padding, lowest)
    return divergence(student.transpose(1, 2), teacher.transpose(1, 2), temperature).mean()


def token_divergence(
    student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """Return the divergence over the classes of a token, mean over the tokens that have a label."""
    each = divergence(student, teacher, temperature)
    if labels is None:
        return each.mean()
    counted = labels != IGNORED
    return each.where(counted, 0.0).sum() / counted.sum().clamp(min=1)


def next_token_divergence(
    student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """Return the divergence over the vocabulary, mean over the positions whose next token has a label.

    `labels` are those of the same positions, as causal language models take them: position i answers for
    label i + 1, and the last position for none.
    """
    following = None if labels is None else labels[:, 1:]
    return token_divergence(student[:, :-1], teacher[:, :-1], temperature, following)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error: a single output has no distribution to soften.

    It is the task loss of a regression with the teacher's values as labels, and the limit of the divergence
    of Eq. 4 of the paper at high temperatures. The temperature is not used.
    """
    return functional.mse_loss(student.float(), teacher.float())


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines of all pairs of different rows, a scalar.

    A single row has no pair: 0.

    Args:
        student: its embeddings, (rows, features).
        teacher: the teacher's, likewise.
    """
    own, target = (functional.normalize(side.float(), dim=-1) for side in (student, teacher.detach()))
    error = (own @ own.T - target @ target.T).square()
    rows = len(error)
    return (error.sum() - error.diagonal().sum()) / max(1, rows * (rows - 1))


def paired_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], layers: Any, mask: Tensor | None = None
) -> Tensor:
    """Return `hidden_distance` over the pairs of states that `Distillation.layers` names.

    Args:
        student: its hidden states after the embeddings and each layer, (rows, positions, width).
        teacher: the teacher's, of more or fewer layers.
        layers: which are compared.
        mask: as in `hidden_distance`.
    """
    counts = len(student) - 1, len(teacher) - 1
    if layers == "nearest":
        with torch.no_grad():

            def distance(own: int, other: int) -> float:
                return float(hidden_distance([student[own]], [teacher[other]], mask))

            pairs = nearest_pairs(*counts, distance)
    else:
        pairs = fixed_pairs(layers, *counts)
    return hidden_distance([student[own] for own, _ in pairs], [teacher[other] for _, other in pairs], mask)


def hidden_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None
) -> Tensor:
    """Return the mean over layers of mean((h − t)²) / (mean(t²) + eps), a scalar (SquareHead,
    arXiv:2310.06927).

    A student whose states are all zero is at distance 1, whatever the teacher's scale. Padding is left out.

    Args:
        student: its hidden states after each layer, (rows, positions, width).
        teacher: the teacher's, of the same shapes.
        mask: (rows, positions), 1 where a row has a token and 0 in its padding; None: no padding.
    """
    distances = []
    for own, other in zip(student, teacher, strict=True):
        target = other.detach().float()
        tokens = torch.ones_like(target[..., :1]) if mask is None else (mask != 0).unsqueeze(-1).float()
        error = ((own.float() - target).square() * tokens).sum()
        scale = (target.square() * tokens).sum()
        distances.append(error / (scale + _EPSILON * tokens.sum() * target.shape[-1]))
    return torch.stack(distances).mean()
