"""The teacher of a distillation: loading it, checking that it fits, and asking it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import find_labels

from fineprune.checkpoint.loading import OpenedModel
from fineprune.config import Distillation
from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import Head
from fineprune.tasks.model_config import is_unnamed, longest_input
from fineprune.tasks.opening import open_trained
from fineprune.training.distillation.heads import answers, head_of, hidden_states
from fineprune.training.distillation.layer_pairs import check_pairs
from fineprune.training.distillation.losses import distillation_loss, paired_distance, similarity_distance
from fineprune.training.distillation.passes import Pass
from fineprune.training.distillation.running_mean import RunningMean
from fineprune.training.distillation.teacher_tokens import WHOLE_TEXTS

_RETRAIN = "train one with this recipe without its `pruning` and `distillation` sections"


class Teacher:
    """A frozen model in evaluation mode whose answers a student learns.

    A model given in Python is changed in place (mode, gradients, device) and not otherwise. `autocast` makes
    the context in which it computes, so that it has the student's precision.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        config: Distillation,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.head = head
        self.config = config
        self._autocast = autocast
        names = [name for name in ("hidden", "similarity") if getattr(config, name)]
        self.means = {name: RunningMean() for name in ("distillation", *names)}
        """The means of the terms of `loss`, without their weights, since the last line of the log."""

    def answer(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the logits for a batch, in float32, in the shape that `heads` gives for the head."""
        return answers(self._outputs(inputs)).float()

    def _outputs(self, inputs: Mapping[str, Any], **asked: bool) -> Any:
        with torch.no_grad(), self._autocast():
            return self.model(**known_inputs(self.model, inputs), **asked)

    def terms(
        self,
        student: nn.Module,
        passes: Sequence[Pass],
        labels: Tensor | None,
        stored: Tensor | None,
        own: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return alpha · KD and the weighted distances for the student's forward passes: means over passes.

        Args:
            student: the module with the head.
            passes: its forward passes for this batch.
            labels: (rows, positions), for tokens and next tokens.
            stored: the teacher's answers to the batch, if they were computed before the training.
            own: the batch in the teacher's own tokens; empty: it reads the student's.
        """
        if not passes:
            raise FinepruneError(
                f"distillation: the training loss ran the {type(student).__name__} without gradients, as "
                "losses that cache gradients do, so its answers cannot be compared; take another loss"
            )
        if own and len(passes) > 1:
            raise FinepruneError(
                f"distillation: the training loss ran the {type(student).__name__} {len(passes)} times, and "
                "the batch has the teacher's tokens once; take another loss"
            )
        terms: dict[str, list[Tensor]] = {name: [] for name in self.means}
        for inputs, outputs in passes:
            if self.head == "next_tokens" and "logits" not in outputs:  # of trl, which never makes them
                outputs = student(**known_inputs(student, inputs))
            mask, config = inputs.get("attention_mask"), self.config
            if config.hidden:
                theirs = self._outputs(inputs, output_hidden_states=True)
                answer = answers(theirs).float()
                states = hidden_states(outputs), hidden_states(theirs)
                terms["hidden"].append(paired_distance(*states, config.layers, mask))
            else:
                answer = self.answer(own or inputs) if stored is None else stored
            ours = answers(outputs)
            if config.similarity:
                terms["similarity"].append(similarity_distance(ours, answer))
            terms["distillation"].append(
                distillation_loss(self.head, ours, answer, config.temperature, mask, labels)
            )
        weights = {"distillation": config.alpha, "hidden": config.hidden, "similarity": config.similarity}
        return {name: weights[name] * self._mean(name, each) for name, each in terms.items()}

    def _mean(self, name: str, terms: Sequence[Tensor]) -> Tensor:
        """Return the mean of a term over the passes, and count it for the log."""
        mean = terms[0] if len(terms) == 1 else torch.stack(list(terms)).mean()
        self.means[name].add(mean)
        return mean


def known_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that the model's forward pass names, without labels."""
    names = set(inspect.signature(model.forward).parameters) - set(find_labels(type(model)))
    return {name: value for name, value in inputs.items() if name in names}


def load_teacher(source: str | Path) -> OpenedModel:
    """Open the float32 model of a run or model folder, or of a name on the hub.

    Returns:
        The model, its tokenizer, None where it has none, and `source` as its place. The state of the random
        generator stays.

    Raises:
        FinepruneError: there is no such model.
    """
    try:
        opened = open_trained(source, hub=True)
    except FinepruneError as error:
        raise FinepruneError(f"teacher {error}") from error
    return OpenedModel(opened.model.float(), opened.tokenizer, source)


def check_fit(
    student: nn.Module,
    teacher: nn.Module,
    name: str,
    tokenizers: tuple[Any, Any] = (None, None),
    longest: int | None = None,
    own_tokens: bool = False,
) -> Head:
    """Return the head that both have; raise `FinepruneError` unless they answer the same about the same ids.

    Args:
        student: the module with the head.
        teacher: the module with the head.
        name: the teacher's name in messages.
        tokenizers: the student's and the teacher's, where they are at hand.
        longest: tokens of the longest text of the training data, as the teacher reads it.
        own_tokens: the teacher reads the texts in tokens of its own.
    """
    if teacher is student:
        raise FinepruneError(f"{name}: is the model that is trained; pass a copy (copy.deepcopy) or another")
    head, theirs = head_of(student), head_of(teacher)
    if head is None:
        raise FinepruneError(
            f"{name}: a {type(student).__name__} cannot be distilled; known are models for sequence "
            "classification (cross-encoders among them), token classification, question answering and causal "
            "language modeling"
        )
    if getattr(getattr(student, "config", None), "problem_type", None) == "multi_label_classification":
        raise FinepruneError(f"{name}: several labels at once cannot be distilled; leave the teacher out")
    if head != theirs:
        raise FinepruneError(
            f"{name}: is a {type(teacher).__name__} and answers {theirs or 'nothing known'}, the model is a "
            f"{type(student).__name__} and answers {head}; {_RETRAIN}"
        )
    ours, others = student.config, teacher.config
    if head == "embeddings":
        _check_width(student, teacher, name)
    elif head != "next_tokens":
        _check_labels(ours, others, name)
    if not own_tokens:
        _check_vocabulary(ours, others, name, head, *tokenizers)
    limit = longest_input(teacher)
    if longest is not None and limit is not None and longest > limit:
        raise FinepruneError(
            f"{name}: takes at most {limit} tokens, and the longest training text has {longest}; "
            f"cut them (training.max_length={limit}), or name another teacher"
        )
    return head


def check_layers(student: nn.Module, teacher: nn.Module, name: str, layers: Any = "same") -> None:
    """Raise `FinepruneError` unless the hidden states of both can be compared, by `Distillation.layers`."""
    ours, theirs = (getattr(model.config, "hidden_size", None) for model in (student, teacher))
    if ours != theirs:
        raise FinepruneError(
            f"{name}: has {theirs} hidden units, the model {ours}, so their hidden states cannot be "
            "compared; leave distillation's hidden out (in a recipe distillation.hidden=0), or name a "
            "teacher of the model's size"
        )
    counts = [getattr(model.config, "num_hidden_layers", 0) or 0 for model in (student, teacher)]
    check_pairs(layers, counts[0], counts[1], name)


def check_similarity(head: Head, weight: float) -> None:
    """Raise `FinepruneError` for a weight of similarities in a loss without embeddings."""
    if weight and head != "embeddings":
        raise FinepruneError(
            f"distillation: similarity={weight:g} compares the embeddings of texts, and this model answers "
            f"{head}; leave it out"
        )


def _check_width(student: Any, teacher: Any, name: str) -> None:
    ours, theirs = (model.sentence.width(model) for model in (student, teacher))
    if ours != theirs:
        raise FinepruneError(
            f"{name}: its embeddings have {theirs} numbers, the model's {ours}; name a teacher of the same "
            "size, or leave it out: the dense model itself teaches"
        )


def _check_labels(ours: Any, theirs: Any, name: str) -> None:
    if ours.num_labels != theirs.num_labels:
        raise FinepruneError(
            f"{name}: has {theirs.num_labels} labels, the model has {ours.num_labels}; {_RETRAIN}"
        )
    for number in range(ours.num_labels):
        own, other = (str(config.id2label.get(number, number)) for config in (ours, theirs))
        if own != other and not any(map(is_unnamed, (own, other))):
            raise FinepruneError(
                f"{name}: label {number} is {other!r} for it and {own!r} for the model; {_RETRAIN}, "
                "or give both the same task.labels"
            )


def _check_vocabulary(ours: Any, theirs: Any, name: str, head: Head, tokenizer: Any, other: Any) -> None:
    """The same token for each id: what the tokenizers say, or at least as many ids."""
    remedy = (
        "teacher and student need one vocabulary: make both from the same pre-trained family"
        if head not in WHOLE_TEXTS
        else "give the rows the texts in its own tokens, too: columns teacher_input_ids and "
        "teacher_attention_mask"
    )
    if hasattr(tokenizer, "get_vocab") and hasattr(other, "get_vocab"):
        own, their = tokenizer.get_vocab(), other.get_vocab()
        if own == their:
            return
        token = min(token for token, _ in own.items() ^ their.items())
        ids = [f"id {words[token]}" if token in words else "no token" for words in (their, own)]
        raise FinepruneError(
            f"{name}: its vocabulary has {len(their)} tokens, the model's {len(own)}; {token!r} is {ids[0]} "
            f"for it and {ids[1]} for the model; {remedy}"
        )
    sizes = [getattr(config, "vocab_size", None) for config in (theirs, ours)]
    if sizes[0] != sizes[1]:
        raise FinepruneError(
            f"{name}: its vocabulary has {sizes[0]} tokens, the model's {sizes[1]}; {remedy}"
        )
