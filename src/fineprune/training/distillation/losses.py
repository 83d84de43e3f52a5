"""How far a student's answers are from its teacher's (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531).

The answers of a head are one tensor of logits: (rows, classes) for texts, (rows, 1) for values (a
regression), (rows, positions, classes) for tokens, and (rows, positions, 2) for spans, the logits of
start and end side by side. Gradients flow to the student alone, and all is computed in float32.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fineprune.errors import FinepruneError

Head = Literal["texts", "values", "tokens", "spans"]

_HEADS: dict[str, Head] = {
    "ForSequenceClassification": "texts",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "spans",
}
IGNORED = -100  # the label of tokens that no loss counts


def head_of(model: torch.nn.Module) -> Head | None:
    """What a transformers model answers, by the name of its class or of one that it inherits from."""
    for kind in type(model).__mro__:
        for ending, head in _HEADS.items():
            if kind.__name__.endswith(ending):
                config = getattr(model, "config", None)
                single = head == "texts" and getattr(config, "num_labels", None) == 1
                return "values" if single else head
    return None


def answers(outputs: Any) -> Tensor:
    """The logits of a model's output, as one tensor."""
    try:
        if "start_logits" in outputs:
            return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
        logits: Tensor = outputs["logits"]
    except (KeyError, TypeError, IndexError) as error:
        raise FinepruneError(
            "distillation: the model's output has neither logits nor start_logits and end_logits; "
            "leave return_dict as it is"
        ) from error
    return logits


def distillation_loss(
    head: Head,
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """The mean over the batch of what the student loses by differing from its teacher.

    `mask`: for spans, 1 where a row has a token and 0 in its padding. `labels`: for tokens.
    """
    teacher = teacher.detach()
    if head == "texts":
        return divergence(student, teacher, temperature).mean()
    if head == "values":
        return squared_error(student, teacher)
    if head == "tokens":
        return token_divergence(student, teacher, temperature, labels)
    return span_divergence(student, teacher, temperature, mask)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) over the last dimension.

    T² keeps the size of the gradients whatever the temperature (section 2 of the paper).
    """
    own = functional.log_softmax(student.float() / temperature, dim=-1)
    target = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(own, target, reduction="none", log_target=True).sum(-1) * temperature**2


def span_divergence(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """The divergence over the positions of a row, mean of start and end, mean over the rows.

    Padding takes no part: no answer lies there, and what stands there depends on the other rows of
    the batch. A trained teacher gives it almost nothing, so this is the divergence over the padded
    width but for −log of what the student gives to the row itself, which the task loss asks for.
    """
    student, teacher = student.float(), teacher.float()
    if mask is not None:
        padding, lowest = mask.unsqueeze(-1) == 0, -1e30 * temperature  # finite: 0 · ∞ is not a number
        student, teacher = student.masked_fill(padding, lowest), teacher.masked_fill(padding, lowest)
    return divergence(student.transpose(1, 2), teacher.transpose(1, 2), temperature).mean()


def token_divergence(
    student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """The divergence over the classes of a token, mean over the tokens that have a label."""
    each = divergence(student, teacher, temperature)
    if labels is None:
        return each.mean()
    counted = labels != IGNORED
    return each.where(counted, 0.0).sum() / counted.sum().clamp(min=1)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """For a regression: one output has no distribution to soften, so the error between the values.

    It is what the task loss takes of the labels, and to what the divergence of Eq. 4 of the paper
    tends at high temperatures. The temperature has no part in it.
    """
    return functional.mse_loss(student.float(), teacher.float())
