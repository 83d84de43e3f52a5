"""The teacher of a distillation: where it comes from, whether it fits, and what it answers."""

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.utils.generic import find_labels

from fineprune._messages import one_line
from fineprune.checkpoint.loading import load
from fineprune.checkpoint.model_folder import model_place
from fineprune.config import Distillation
from fineprune.errors import FinepruneError
from fineprune.tasks.modeling import longest_input
from fineprune.training.distillation.losses import Head, answers, distillation_loss, head_of

_RETRAIN = "train one with this recipe without its `pruning` and `distillation` sections"


class Teacher:
    """A model that answers what a student is trained on: in evaluation mode, frozen, without gradients.

    A model given in Python is changed in place (mode, gradients, device) and otherwise left alone.
    `autocast` makes the context in which it computes, so that it does so in the student's precision.
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
        takes = inspect.signature(model.forward).parameters
        self._takes = set(takes) - set(find_labels(type(model)))
        self._sum: Tensor | None = None
        self._count = 0

    def answer(self, inputs: Mapping[str, Any]) -> Tensor:
        """The logits for a batch, in float32, as `distillation.answers` puts them."""
        known = {name: value for name, value in inputs.items() if name in self._takes}
        with torch.no_grad(), self._autocast():
            return answers(self.model(**known)).float()

    def loss(
        self, outputs: Any, inputs: Mapping[str, Any], labels: Tensor | None, kept: Tensor | None
    ) -> Tensor:
        """What the student's outputs lose against the teacher's answers, those `kept` or new ones."""
        own, answer = answers(outputs), self.answer(inputs) if kept is None else kept
        loss = distillation_loss(
            self.head, own, answer, self.config.temperature, inputs.get("attention_mask"), labels
        )
        self._sum = loss.detach() if self._sum is None else self._sum + loss.detach()
        self._count += 1
        return loss

    def mean_loss(self) -> float | None:
        """The mean of the losses since this was last asked; None where there were none."""
        total, count = self._sum, self._count
        self._sum, self._count = None, 0
        return None if total is None else float(total) / count

    def sums(self) -> tuple[str, int] | None:
        """The sum, as text, and the number of these losses so far; None where there are none."""
        return None if self._sum is None else (repr(float(self._sum)), self._count)

    def go_on(self, total: str, count: int) -> None:
        """Continue such a sum."""
        self._sum, self._count = torch.tensor(float(total)), count


def load_teacher(source: str | Path) -> tuple[Any, Any]:
    """The model, and the tokenizer if there is one, of a run or model folder, or of a hub name.

    Raises `FinepruneError` where there is no such model. The state of the random generator stays.
    """
    place = Path(source).expanduser()
    local = place.is_dir()
    name = str(source)
    if not local and (
        place.exists() or place.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    ):
        what = "is a file" if place.exists() else "no such folder"
        raise FinepruneError(
            f"teacher {name}: {what}; name a run folder, a model folder or a model on the hub"
        )
    with torch.random.fork_rng(devices=[]):
        if local:
            place = model_place(place)
            model: Any = load(place)
        else:
            model = _from_hub(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            place if local else name, local_files_only=local, trust_remote_code=False
        )
    except Exception:  # whatever transformers raises: only a part of the check needs it
        tokenizer = None
    return model.float(), tokenizer


def _from_hub(name: str) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        (kind,) = config.architectures or ["AutoModel"]
        return getattr(transformers, kind).from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, SafetensorError, … by file and by version
        raise FinepruneError(
            f"teacher {name}: cannot be loaded (no such folder, so from the hub): {one_line(error)}"
        ) from error


def check_fit(
    student: nn.Module,
    teacher: nn.Module,
    name: str,
    tokenizers: tuple[Any, Any] = (None, None),
    longest: int | None = None,
) -> Head:
    """The head that both have; raises `FinepruneError` unless they answer the same about the same ids.

    `name` is how the messages call the teacher, `tokenizers` are the student's and the teacher's where
    they are at hand, `longest` the number of tokens of the longest text that it will see.
    """
    if teacher is student:
        raise FinepruneError(f"{name}: is the model that is trained; pass a copy (copy.deepcopy) or another")
    head, theirs = head_of(student), head_of(teacher)
    if head is None:
        raise FinepruneError(
            f"{name}: a {type(student).__name__} cannot be distilled; known are models for sequence "
            "classification, token classification and question answering"
        )
    if getattr(getattr(student, "config", None), "problem_type", None) == "multi_label_classification":
        raise FinepruneError(f"{name}: several labels at once cannot be distilled; leave the teacher out")
    if head != theirs:
        raise FinepruneError(
            f"{name}: is a {type(teacher).__name__} and answers {theirs or 'nothing known'}, the model is a "
            f"{type(student).__name__} and answers {head}; {_RETRAIN}"
        )
    ours, others = student.config, teacher.config
    _check_labels(ours, others, name)
    _check_vocabulary(ours, others, name, *tokenizers)
    limit = longest_input(teacher)
    if longest is not None and limit is not None and longest > limit:
        raise FinepruneError(
            f"{name}: takes at most {limit} tokens, and the longest training text has {longest}; "
            f"cut them (training.max_length={limit}), or name another teacher"
        )
    return head


def _check_labels(ours: Any, theirs: Any, name: str) -> None:
    if ours.num_labels != theirs.num_labels:
        raise FinepruneError(
            f"{name}: has {theirs.num_labels} labels, the model has {ours.num_labels}; {_RETRAIN}"
        )
    for number in range(ours.num_labels):
        own, other = (str(config.id2label.get(number, number)) for config in (ours, theirs))
        if own != other and not any(re.fullmatch(r"LABEL_\d+", label) for label in (own, other)):
            raise FinepruneError(
                f"{name}: label {number} is {other!r} for it and {own!r} for the model; {_RETRAIN}, "
                "or give both the same task.labels"
            )


def _check_vocabulary(ours: Any, theirs: Any, name: str, tokenizer: Any, other: Any) -> None:
    """The same token for each id: what the tokenizers say, or at least as many ids."""
    remedy = "teacher and student need one vocabulary: make both from the same pre-trained family"
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
