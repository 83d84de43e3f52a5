"""A teacher in a training: its share of the loss, its line in the log, its answers stored before."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.checkpoint.loading import OpenedModel
from fineprune.config import Distillation
from fineprune.errors import FinepruneError
from fineprune.pruning.loop_checks import WITHOUT, Term
from fineprune.pruning.progress import warn_first
from fineprune.training.distillation.heads import head_module
from fineprune.training.distillation.passes import Recorder
from fineprune.training.distillation.row_lengths import are_tokenized, lengths_of
from fineprune.training.distillation.teacher import (
    Teacher,
    check_fit,
    check_layers,
    check_similarity,
    load_teacher,
)
from fineprune.training.distillation.teacher_logits import ROW, StoredLogits, numbered
from fineprune.training.distillation.teacher_tokens import (
    IDS,
    INPUTS,
    TeacherCollator,
    check_whole_texts,
    teacher_columns,
)
from fineprune.training.host.grafting import Grafting
from fineprune.training.host.part import MicroBatch, Part


class Teaching(Part):
    """The training loss becomes task · loss + alpha · KD + hidden · distance, as a `Distillation` says."""

    def __init__(self, host: Any, source: nn.Module | str | Path, config: Distillation) -> None:
        """Load the teacher, and check that it fits, before anything is spent."""
        model, tokenizer, place = _opened(source)
        name = f"teacher {place}".strip()
        own = host.processing_class or getattr(host.data_collator, "tokenizer", None)
        rows = host.train_dataset
        self._student, model = head_module(host.model), head_module(model)
        self.columns = teacher_columns(rows, model)
        ids = IDS if self.columns else "input_ids"
        longest = max(lengths_of(rows, ids), default=None) if are_tokenized(rows) else None
        head = check_fit(self._student, model, name, (own, tokenizer), longest, bool(self.columns))
        if self.columns:
            check_whole_texts(head, name, config)
            host.data_collator = TeacherCollator(host.data_collator, self.columns, _padding_of(model))
        check_similarity(head, config.similarity)
        if config.hidden:
            check_layers(self._student, model, name, config.layers)
        if config.separate and host.args.world_size > 1:
            raise FinepruneError("distillation: separate=True: only with a single process; leave it out")
        self._host = host
        self.grafting = None
        if config.graft is not None:
            self.grafting = Grafting(host, self._student, model, config.graft, config.graft_until)
        self._teacher = Teacher(model, head, config, host.args.device, host.accelerator.autocast)
        self._recorder = Recorder(self._student, hidden=config.hidden > 0)
        self._term = Term()

    def watching(self) -> AbstractContextManager[None]:
        return self._recorder.recording()

    def change_loss(self, loss: Tensor, batch: MicroBatch) -> Tensor:
        passes = self._recorder.take()
        terms = self._teacher.terms(self._student, passes, batch.labels, batch.stored, batch.theirs)
        taught = torch.stack(list(terms.values())).sum()
        if self._teacher.config.separate:
            taught = taught + unseen(terms["hidden"], self._scores())
        self._term.watch(taught)
        return taught / batch.parts + self._teacher.config.task_weight * loss

    def _scores(self) -> list[Tensor]:
        """Return the importance scores that have gradients."""
        pruner = self._host.pruner
        scores = [] if pruner is None else [target.masked.scores for target in pruner.scored]
        return [entry for entry in scores if entry is not None and entry.requires_grad]

    def logged(self, line: Mapping[str, float]) -> dict[str, float]:
        if "loss" not in line:
            return {}
        means = {name: mean.take() for name, mean in self._teacher.means.items()}
        return {name: mean for name, mean in means.items() if mean is not None}

    def after_step(self) -> None:
        if self._term.missing():
            warn_first(
                f"{WITHOUT} steps without the teacher in the loss: a trainer's own compute_loss must return "
                "the loss of super().compute_loss"
            )

    def sums(self) -> dict[str, Any]:
        return {name: mean.sums() for name, mean in self._teacher.means.items()}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        for name, mean in self._teacher.means.items():
            if sums.get(name) is not None:
                mean.go_on(*sums[name])


def _opened(source: Any) -> OpenedModel:
    """Return the teacher that a caller gave, with its name for messages as its place."""
    if isinstance(source, OpenedModel):
        return source
    if isinstance(source, nn.Module):
        return OpenedModel(source, None, "")
    if isinstance(source, (str, Path)):
        return load_teacher(source)
    raise FinepruneError(f"teacher={source!r}: must be a model, a folder or a hub name")


def _padding_of(model: Any) -> int | None:
    """Return the id of a model's padding; None where its config has none."""
    padding: int | None = getattr(model.config, "pad_token_id", None)
    return padding


def unseen(term: Tensor, scores: Sequence[Tensor]) -> Tensor:
    """Return a scalar 0 whose gradient takes that of a term out of the scores, and of nothing else."""
    if not scores or not term.requires_grad:
        return torch.zeros_like(term)
    gradients = torch.autograd.grad(term, scores, retain_graph=True, allow_unused=True)
    products = [
        (gradient * entry).sum()
        for gradient, entry in zip(gradients, scores, strict=True)
        if gradient is not None
    ]
    if not products:  # blocks of the teacher, or left out, between the term and every score
        return torch.zeros_like(term)
    product = torch.stack(products).sum()
    return product.detach() - product


class StoredTeaching(Teaching):
    """The same with answers that are computed once and read from a folder; needs a single process."""

    def __init__(
        self, host: Any, source: nn.Module | str | Path, config: Distillation, folder: str | Path
    ) -> None:
        super().__init__(host, source, config)
        if host.args.world_size > 1:
            raise FinepruneError("teacher_logits: only with a single process; leave it out")
        if self._student is not host.model or self._teacher.head == "next_tokens":
            raise FinepruneError(
                f"teacher_logits: the answers of a {type(self._student).__name__} inside a "
                f"{type(host.model).__name__} cannot be stored before the training; leave it out"
            )
        if config.graft is not None:
            raise FinepruneError(
                "teacher_logits: graft needs the teacher's blocks in each step; leave one of them out"
            )
        if config.hidden:
            raise FinepruneError(
                f"teacher_logits: hidden={config.hidden:g} needs the teacher's hidden states, which are not "
                "stored; give hidden=0, or leave the stored answers out"
            )
        self.columns = (*self.columns, ROW)
        self._folder, self._rows = Path(folder), host.train_dataset
        self._stored = host.data_collator = StoredLogits(host.data_collator, self._teacher.head)
        host.train_dataset = numbered(host.train_dataset)

    def before_training(self, steps: int, steps_done: int) -> None:
        """Read the answers, or let the teacher give them."""
        host, teacher, rows = self._host, self._teacher, self._rows
        if hasattr(rows, "column_names"):
            rows = host._remove_unused_columns(rows)
        else:
            self._stored.collate = host._get_collator_with_removed_columns(self._stored.collate)

        def answer(batch: Any) -> Tensor:
            teacher.model.to(host.args.device)
            inputs = host._prepare_inputs(batch)
            return teacher.answer(inputs.pop(INPUTS, None) or inputs)

        precision, progress = host.accelerator.mixed_precision, not host.args.disable_tqdm
        self._stored.load(self._folder, rows, teacher.model, answer, precision, progress)
        teacher.model.cpu()  # no longer needed
