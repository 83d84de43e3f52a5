"""The only overrides of transformers' Trainer: pruning classes of its subclasses, and `PruningTrainer`."""

import contextlib
import copyreg
import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size

from fineprune.config import Distillation, PruningConfig
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.pruning.distributed import agreement
from fineprune.pruning.preparing import prepare
from fineprune.pruning.pruner import Pruner
from fineprune.training.distillation.row_lengths import lengths_of
from fineprune.training.distillation.teacher_logits import LOGITS
from fineprune.training.distillation.teacher_tokens import INPUTS
from fineprune.training.host import accumulation, last_batch, processes, sealing
from fineprune.training.host.checkpoints import Checkpoints
from fineprune.training.host.part import MicroBatch, Part, prefix_of
from fineprune.training.host.sampler import GroupedByLength
from fineprune.training.host.serving_length import widen_serving_length
from fineprune.training.host.steps import Steps
from fineprune.training.host.stopping import FiniteLoss, StopsAtSignals
from fineprune.training.host.task_loss import TaskLoss
from fineprune.training.host.teaching import StoredTeaching, Teaching
from fineprune.training.host.weights import PrunedWeights, Weights

_NOT_GIVEN: Any = object()


class PruningTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that prunes while it trains. Takes all arguments of its host, transformers' Trainer, and

    `pruning`: a `PruningConfig`, or None to train densely; without it, a warning says so. The model is
    prepared in place at once, so that a setting which cannot work fails before anything is spent;
    `trainer.pruner` is its `Pruner`. Scores get their own parameter group, the penalty joins the training
    loss (not the evaluation loss), masks follow every optimizer step; density, threshold and lambda appear in
    the logs, and as `eval_density` and so on in what `evaluate` returns. With a penalty or a teacher the log
    also has `task_loss`, the host's loss without them. With `load_best_model_at_end`, or
    `save_strategy="best"`, only states at the final density compete. Checkpoints are written whole or not at
    all, open as ordinary models, and resume bit for bit.

    `teacher`: a model fine-tuned on the task, a run or model folder, or a name on the hub. The training loss
    becomes alpha · KD + (1 − alpha) · loss, as `distillation` says (a `Distillation`), and the log has the
    mean KD since the last line; the penalty comes on top, evaluation is unchanged. Of a model in Python only
    the size of its vocabulary can be compared. `teacher_logits`: a folder for the teacher's answers, which
    are then computed once before the training.

    `check_masks`: with several processes (DDP, FSDP2), compare their masks every N steps, and stop where they
    differ.

    After the training, `fineprune.finalize(trainer.model)` makes the masks permanent;
    `trainer.save_model(folder)` writes such a finalized copy.
    """

    host: type = Trainer
    """The class that prunes with these overrides, which come before its methods: see `pruning_trainer`."""

    model: Any
    optimizer: Any
    train_dataset: Any
    data_collator: Any
    args: Any
    state: Any

    def __init__(
        self,
        *args: Any,
        pruning: PruningConfig | None = _NOT_GIVEN,
        teacher: nn.Module | str | Path | None = None,
        distillation: Distillation | None = None,
        teacher_logits: str | Path | None = None,
        check_masks: int | None = None,
        **kwargs: Any,
    ) -> None:
        given, pruning = pruning is not _NOT_GIVEN, None if pruning is _NOT_GIVEN else pruning
        _check_types(pruning, distillation, check_masks)
        if teacher is None and (distillation is not None or teacher_logits is not None):
            raise FinepruneError("distillation needs a teacher: pass teacher=, a model, folder or hub name")
        self._parts: list[Part] = []
        super().__init__(*args, **kwargs)
        processes.one_device(self)
        widen_serving_length(self.model, self.train_dataset)
        agreement.agree(processes.facts(self), "PruningTrainer")
        if pruning is not None:
            self._check_pruning()
        data = {"training": self.train_dataset, "validation": self.eval_dataset}  # before a teacher's column
        accumulation.correct(self, self.host)
        if teacher is not None and self.train_dataset is not None:
            teaching = _teaching(self, teacher, distillation or Distillation(), teacher_logits)
            self._parts += [part for part in (teaching, teaching.grafting) if part is not None]
        self.pruner: Pruner | None = None
        self._weights = Weights()
        if pruning is not None and self.train_dataset is not None:
            self.pruner = prepare(self.model, pruning, self._planned_steps())
            self._weights = PrunedWeights(self, self.pruner, check_masks)
        if self.optimizer is not None:
            self._weights.attach(self.optimizer, self.lr_scheduler)
        if self._parts or (self.pruner is not None and self.pruner.has_penalty):
            self._parts.insert(0, TaskLoss())
        self._parts.append(self._weights)
        self._finite = FiniteLoss()
        self._checkpoints = Checkpoints(self, self._weights, self._parts, data)
        self._loads_best = False
        if not given and teacher is None and self.train_dataset is not None and agreement.is_first():
            warnings.warn(
                f"{type(self).__name__} without pruning= trains densely; pass a fineprune.PruningConfig, or "
                "pruning=None if that is what you want",
                FinepruneWarning,
                stacklevel=2,
            )
        self.add_callback(Steps(self._parts, self._checkpoints, self._finite, self._folder))

    def _check_pruning(self) -> None:
        processes.refuse_engines(self)
        if self.args.auto_find_batch_size:
            raise FinepruneError(
                "auto_find_batch_size cannot be combined with pruning, whose schedule would begin again in "
                "the middle; leave it out and choose per_device_train_batch_size"
            )
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self.args, name) and self.train_dataset is not None:
                raise FinepruneError(
                    f"{name}=True cannot be combined with pruning: evaluate() would cast the model in "
                    f"training, and its scores with it; leave it out, and use {name[:4]}=True for autocast"
                )
        if self.model_init is not None:
            raise FinepruneError("model_init cannot be combined with pruning; pass the model itself")

    def _planned_steps(self) -> int:
        """Return the optimizer steps of the training, which epochs give by the size of the data."""
        steps: int = self.args.max_steps
        if steps <= 0:
            steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        return steps

    def _folder(self) -> Path:
        """Return the folder of the checkpoints: that of the trial in a search, else of the arguments."""
        return Path(super()._get_output_dir(getattr(self, "_trial", None)))

    # -- optimizer and data --------------------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the host's optimizer, and take the scores out of its groups."""
        given = None if self.optimizer is None else self.lr_scheduler
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        self._weights.attach(optimizer, given)
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        """With `group_by_length`, return a sampler whose order is a function of seed and epoch.

        The one of transformers draws from the global generator, and could not resume exactly.
        """
        data = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(data, "__len__"):
            return super()._get_train_sampler(train_dataset)  # type: ignore[no-any-return]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupedByLength(lengths_of(data), processes.rows_per_step(self), seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler[int] | None:
        """Return the order given, whatever the order of training.

        transformers groups evaluation batches by length as well, and a metric that depends on the order of
        the rows, such as that of answers over windows, would see other rows.
        """
        grouped = self.args.train_sampling_strategy == "group_by_length"
        if not grouped or not hasattr(eval_dataset, "__len__"):
            return super()._get_eval_sampler(eval_dataset)  # type: ignore[no-any-return]
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        wanted = [column for part in self._parts for column in part.columns]
        self._signature_columns += [column for column in wanted if column not in self._signature_columns]

    # -- steps ---------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the host does; one that ended before its schedule is a `FinepruneWarning`."""
        with agreement.connected():
            output = super().train(*args, **kwargs)
        callbacks = self.callback_handler.callbacks
        if not any(isinstance(entry, StopsAtSignals) and entry.stopped for entry in callbacks):
            for part in self._parts:
                part.after_training()
        return output

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict as the host does; a process that ended is one line on the others."""
        with agreement.connected():
            return super().evaluation_loop(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the host's loss; while training, with the shares of the parts."""
        stored, theirs, labels = inputs.pop(LOGITS, None), inputs.pop(INPUTS, {}), inputs.get("labels")
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        with contextlib.ExitStack() as watching:
            for part in self._parts:
                watching.enter_context(part.watching())
            result = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        loss, outputs = result if return_outputs else (result, None)
        parts = accumulation.parts(self, kwargs.get("num_items_in_batch"))
        batch = MicroBatch(labels, stored, theirs, parts)
        for part in self._parts:
            loss = part.change_loss(loss, batch)
        self._finite.note(loss, self.state.global_step + 1)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Evaluate a batch; rows that only fill up the last one of several processes are not in the loss."""
        inputs.pop(INPUTS, None)
        own = last_batch.own_rows(self, inputs)
        if own is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        rows, batch = find_batch_size(inputs), last_batch.first_rows(inputs, own)
        loss, *answers = super().prediction_step(model, batch, prediction_loss_only, ignore_keys)
        return loss, *(last_batch.filled(answer, own, rows) for answer in answers)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line with the parts' values, and add these to the metrics, in place.

        Names of metrics have a prefix, which a notebook takes off for its titles.
        """
        prefix, line = prefix_of(logs) or "", dict(logs)
        for part in self._parts:
            line |= part.logged(line)
        added = line.keys() - logs.keys()
        super().log(line, start_time)
        logs.update({f"{prefix}{name}" if name in added else name: value for name, value in line.items()})

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Let only states at the final density compete: an early one is better, and not pruned."""
        return self._weights.at_final_density and bool(super()._determine_best_metric(metrics, trial))

    # -- checkpoints ---------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write an ordinary model folder, which the host's `from_pretrained` loads.

        With several processes, all of them call it, and the first writes. Under FSDP2 and DeepSpeed the model
        in a checkpoint stays prepared, in the engine's own format.
        """

        def save() -> None:
            super(PruningTrainer, self).save_model(output_dir, _internal_call)

        if _internal_call:
            self._weights.save_checkpoint(save)
            return
        self._weights.save_model(save, output_dir)
        if not self.is_in_train:
            self._weights.after_training()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        place = Path(super()._get_output_dir(trial))
        self._finite.check(place, self.model, saving=True)
        with self._checkpoints.sealed(place):
            super()._save_checkpoint(model, trial)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoints.staging or super()._get_output_dir(trial))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        """Load a checkpoint that verifies; the pruner goes on from its step."""
        folder = Path(resume_from_checkpoint)

        def load() -> None:
            super(PruningTrainer, self)._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

        if self._loads_best:  # some hosts load the best state by this method: the weights alone
            load()
            return
        self._checkpoints.open(folder)
        self._weights.load(folder, load)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._checkpoints.check_optimizer(self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        """Load the weights and masks of the best state; the pruner stays at its step."""
        best = Path(self.state.best_model_checkpoint)
        sealing.verify(best)  # some hosts only log that they could not load it
        self._loads_best = True
        try:
            self._weights.load(best, super()._load_best_model)
        finally:
            self._loads_best = False


@functools.cache
def pruning_trainer(base: type[Trainer]) -> Any:
    """Return a class of trainers that works as `base` does, and prunes as `PruningTrainer` does.

    The same base gives the same class, which can be pickled.

    Args:
        base: transformers' Trainer or a subclass of it, such as sentence-transformers'
            SentenceTransformerTrainer or trl's SFTTrainer.

    Raises:
        FinepruneError: `base` is no such class.
    """
    if not isinstance(base, type) or not issubclass(base, Trainer):
        raise FinepruneError(
            f"pruning_trainer({base!r}): takes a class, transformers.Trainer or a subclass of it"
        )
    if base is Trainer:
        return PruningTrainer
    if issubclass(base, PruningTrainer):
        return base
    about = {
        "host": base,
        "__module__": __name__,
        "__doc__": f"A {base.__name__} that prunes: see `PruningTrainer`.",
    }
    kind: Any = type(base)
    return _picklable(kind)(f"Pruning{base.__name__}", (PruningTrainer, base), about)


@functools.cache
def _picklable(kind: Any) -> Any:
    """Return a metaclass like `kind`, whose classes are pickled by their hosts."""
    made = type(f"Pruning{kind.__name__}", (kind,), {})
    copyreg.pickle(made, _reduced)
    return made


def _reduced(kind: Any) -> Any:
    by_host = kind is pruning_trainer(kind.host)  # else a subclass of it, which has a name of its own
    return (pruning_trainer, (kind.host,)) if by_host else kind.__qualname__


def _check_types(
    pruning: PruningConfig | None, distillation: Distillation | None, check_masks: int | None
) -> None:
    if check_masks is not None and (not isinstance(check_masks, int) or check_masks < 1):
        raise FinepruneError(f"check_masks={check_masks!r}: must be a number of steps, at least 1, or None")
    if pruning is not None and not isinstance(pruning, PruningConfig):
        raise FinepruneError(f"pruning={pruning!r}: must be a fineprune.PruningConfig, or None")
    if distillation is not None and not isinstance(distillation, Distillation):
        raise FinepruneError(f"distillation={distillation!r}: must be a fineprune.Distillation, or None")


def _teaching(
    host: Any, source: nn.Module | str | Path, config: Distillation, folder: str | Path | None
) -> Teaching:
    return Teaching(host, source, config) if folder is None else StoredTeaching(host, source, config, folder)
