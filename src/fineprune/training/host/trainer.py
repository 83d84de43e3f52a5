"""PruningTrainer: transformers' Trainer with scores, masks and penalty in their places."""

import copy
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import rotate_checkpoints

from fineprune.config import Distillation, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement
from fineprune.pruning.distributed.gathering import gather_state_dict
from fineprune.pruning.pruner import Pruner, finalize, prepare
from fineprune.training.distillation.teacher import Teacher, check_fit, load_teacher
from fineprune.training.distillation.teacher_logits import LOGITS, ROW, KeptLogits, numbered
from fineprune.training.host import processes, sealing
from fineprune.training.host.sampler import GroupedByLength, lengths_of
from fineprune.training.host.stopping import FiniteLoss

_log = logging.getLogger("fineprune")


class PruningTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that prunes while it trains. Takes all arguments of transformers' Trainer, and

    `pruning`: a `PruningConfig`, or None to train densely. The model is prepared in place at
    once, so that a setting which cannot work fails before anything is spent; `trainer.pruner`
    is its `Pruner`. Scores get their own parameter group, the penalty joins the training loss (not the
    evaluation loss), masks follow every optimizer step, and density, threshold and lambda
    appear in the logs. With `load_best_model_at_end`, or `save_strategy="best"`, only states at
    the final density compete. Checkpoints are written whole or not at all, and resume bit for bit.

    `teacher`: a model fine-tuned on the task, a run or model folder, or a name on the hub. The
    training loss becomes alpha · KD + (1 − alpha) · loss, as `distillation` says (a `Distillation`),
    and the log has the mean KD since the last line; the penalty comes on top, evaluation stays as it
    is. Of a model only the size of its vocabulary can be compared. `teacher_logits`: a folder for the
    teacher's answers, computed once before training.

    `check_masks`: with several processes (DDP, FSDP2), compare their masks each so many steps, and stop
    where they differ.

    After training, `fineprune.finalize(trainer.model)` makes the masks permanent;
    `trainer.save_model(folder)` writes such a finalized copy.
    """

    model: Any
    optimizer: Any
    train_dataset: Any
    data_collator: Any

    def __init__(
        self,
        *args: Any,
        pruning: PruningConfig | None = None,
        teacher: nn.Module | str | Path | None = None,
        distillation: Distillation | None = None,
        teacher_logits: str | Path | None = None,
        check_masks: int | None = None,
        **kwargs: Any,
    ) -> None:
        if check_masks is not None and (not isinstance(check_masks, int) or check_masks < 1):
            raise FinepruneError(
                f"check_masks={check_masks!r}: must be a number of steps, at least 1, or None"
            )
        if pruning is not None and not isinstance(pruning, PruningConfig):
            raise FinepruneError(f"pruning={pruning!r}: must be a fineprune.PruningConfig, or None")
        if distillation is not None and not isinstance(distillation, Distillation):
            raise FinepruneError(f"distillation={distillation!r}: must be a fineprune.Distillation, or None")
        if teacher is None and (distillation is not None or teacher_logits is not None):
            raise FinepruneError("distillation needs a teacher: pass teacher=, a model, folder or hub name")
        self._kept: KeptLogits | None = None
        self._teacher: Teacher | None = None
        self._finite = FiniteLoss()
        self._sums: dict[str, Any] = {}
        self.check_masks = check_masks
        super().__init__(*args, **kwargs)
        processes.one_device(self)
        agreement.agree(processes.facts(self), "PruningTrainer")
        if pruning is not None:
            processes.refuse_engines(self)
            if self.args.auto_find_batch_size:
                raise FinepruneError(
                    "auto_find_batch_size cannot be combined with pruning, whose schedule would begin again "
                    "in the middle; leave it out and choose per_device_train_batch_size"
                )
        # Otherwise some models divide their loss by the accumulated item count and the Trainer does not
        # average over micro-batches: the loss comes out too large (transformers issue 47688).
        self.model_accepts_loss_kwargs = False
        self.pruner: Pruner | None = None
        self._staging: Path | None = None
        if teacher is not None and self.train_dataset is not None:
            self._take_teacher(teacher, distillation or Distillation(), teacher_logits)
        if pruning is not None and self.train_dataset is not None:
            if self.model_init is not None:
                raise FinepruneError("model_init cannot be combined with pruning; pass the model itself")
            total = self.args.max_steps
            if total <= 0:  # given in epochs: the data tell
                total = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
            self.pruner = prepare(self.model, pruning, total)
            if self.optimizer is not None:
                self._check_optimizer(self.optimizer)
        self.add_callback(_PruningSteps(self))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments, over the pruner's parameter groups."""
        if self.pruner is None or self.optimizer is not None:
            return super().create_optimizer(model)  # type: ignore[no-any-return]
        chosen = self.optimizer_cls_and_kwargs
        cls, kwargs = chosen or self.get_optimizer_cls_and_kwargs(
            self.args, self.model if model is None else model
        )
        settings = {name: value for name, value in kwargs.items() if name != "lr"}
        self.optimizer = self.pruner.optimizer(
            cls, self.args.learning_rate, self.args.weight_decay, **settings
        )
        return self.optimizer  # type: ignore[no-any-return]

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        """With `group_by_length`, a sampler whose order is a function of seed and epoch: the
        Trainer's own draws from the global generator, and could not resume exactly.
        """
        data = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(data, "__len__"):
            return super()._get_train_sampler(train_dataset)  # type: ignore[no-any-return]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupedByLength(lengths_of(data), processes.rows_per_step(self), seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler[int] | None:
        """The order given, however training batches are made up: the Trainer groups these by length as
        well, and a metric that goes by the order of the rows (answers over windows) would take others'.
        """
        grouped = self.args.train_sampling_strategy == "group_by_length"
        if not grouped or not hasattr(eval_dataset, "__len__"):
            return super()._get_eval_sampler(eval_dataset)  # type: ignore[no-any-return]
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The model's loss; while training, mixed with the teacher's and plus the penalty."""
        kept, labels = inputs.pop(LOGITS, None), inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            # With a loss function of the user's the Trainer does not average over micro-batches.
            parts = 1
            if self.compute_loss_func is not None:
                parts = getattr(self, "current_gradient_accumulation_steps", 1)
            if self._teacher is not None:
                alpha = self._teacher.config.alpha
                distilled = self._teacher.loss(outputs, inputs, labels, kept)
                loss = alpha * (distilled / parts) + (1 - alpha) * loss
            if self.pruner is not None:
                loss = loss + self.pruner.penalty() / parts
            self._finite.note(loss, self.state.global_step + 1)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The Trainer's; rows that only fill up the last batch of several processes are not in the loss."""
        own = processes.own_rows(self, inputs)
        if own is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        rows, part = find_batch_size(inputs), processes.first_rows(inputs, own)
        loss, *answers = super().prediction_step(model, part, prediction_loss_only, ignore_keys)
        return loss, *(processes.filled(answer, own, rows) for answer in answers)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the distillation loss and the masks' state to what is logged during training."""
        if self._teacher is not None and "loss" in logs:
            distilled = self._teacher.mean_loss()
            if distilled is not None:
                logs["distillation"] = distilled
        if self.pruner is not None and ("loss" in logs or "eval_loss" in logs):
            logs["density"] = self.pruner.density
            if self.pruner.threshold is not None:
                logs["threshold"] = self.pruner.threshold
                logs["mask_changed"] = self.pruner.changed
            if self.pruner.config.traits.takes_penalty:
                logs["lambda"] = self.pruner.lambda_
                logs["penalty"] = float(self.pruner.penalty().detach())
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write an ordinary model folder: a finalized copy, which `from_pretrained` loads.

        The Trainer's own checkpoints keep scores and masks, to go on from. With several processes, all of
        them call it, and the first writes.
        """
        if self.pruner is None or _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            state = gather_state_dict(self.model)
            if self.args.should_save:
                self._save(output_dir, state)
            return
        training = self.model
        self.model = finalize(copy.deepcopy(training))
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.model = training

    # -- the teacher ---------------------------------------------------------------------------

    def _take_teacher(
        self, source: nn.Module | str | Path, config: Distillation, folder: str | Path | None
    ) -> None:
        """Load it where it must be loaded, and check that it fits, before anything is spent."""
        if not isinstance(source, (nn.Module, str, Path)):
            raise FinepruneError(f"teacher={source!r}: must be a model, a folder or a hub name")
        model, tokenizer = (source, None) if isinstance(source, nn.Module) else load_teacher(source)
        name = "teacher" if isinstance(source, nn.Module) else f"teacher {source}"
        own = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        rows = self.train_dataset
        read = isinstance(rows, list) or "input_ids" in (getattr(rows, "column_names", None) or ())
        longest = max(lengths_of(rows), default=None) if read else None
        head = check_fit(self.model, model, name, (own, tokenizer), longest)
        self._teacher = Teacher(model, head, config, self.args.device, self.accelerator.autocast)
        if folder is not None:
            if self.args.world_size > 1:
                raise FinepruneError("teacher_logits: only with a single process; leave it out")
            self._teacher_folder, self._plain_rows = Path(folder), self.train_dataset
            self._kept = self.data_collator = KeptLogits(self.data_collator, head)
            self.train_dataset = numbered(self.train_dataset)

    def _read_teacher(self) -> None:
        """With `teacher_logits`: read the answers, or let the teacher give them, before the first step."""
        if self._kept is None or self._teacher is None:
            return
        rows = self._plain_rows
        if hasattr(rows, "column_names"):
            rows = self._remove_unused_columns(rows)
        else:
            self._kept.collate = self._get_collator_with_removed_columns(self._kept.collate)
        teacher, device = self._teacher, self.args.device

        def answer(batch: Any) -> Tensor:
            teacher.model.to(device)
            return teacher.answer(self._prepare_inputs(batch))

        precision, progress = self.accelerator.mixed_precision, not self.args.disable_tqdm
        self._kept.load(self._teacher_folder, rows, teacher.model, answer, precision, progress)
        teacher.model.cpu()  # no longer needed

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._kept is not None and ROW not in self._signature_columns:
            self._signature_columns.append(ROW)

    # -- checkpoints ---------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint beside its place, seal it, rename it: a kill leaves no half of one, and
        where it cannot be written all processes stop.
        """
        place = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        self._finite.check(place, self.model, saving=True)
        limit, best = self.args.save_total_limit, self.state.best_global_step
        run = processes.written_by(self) | {"sums": self._logged_so_far()}
        try:
            # The Trainer would wait for all processes in the middle, once it has a best step: also for one
            # that cannot write.
            self.args.save_total_limit = self.state.best_global_step = None
            self._staging = place / ".writing"
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()  # before another process writes there
            with agreement.together(name), sealing.writing(place / name, place):
                super()._save_checkpoint(model, trial)
            self.state.best_global_step = best
            if best and (best == self.state.global_step or (place / f"checkpoint-{best}").exists()):
                self.state.best_model_checkpoint = str(place / f"checkpoint-{best}")
            with agreement.together(name), sealing.writing(place / name, place):
                if self.args.should_save:  # each has written its part
                    self._seal(self._staging / name, place, run)
                    # Not by mtime, which a coarse clock makes equal: by number.
                    rotate_checkpoints(str(place), limit, self.state.best_model_checkpoint)
        finally:
            if self.args.should_save:
                shutil.rmtree(place / ".writing", ignore_errors=True)  # of a disk that is full: room
            self.args.save_total_limit, self.state.best_global_step = limit, best
            self._staging = None

    def _seal(self, written: Path, place: Path, run: dict[str, Any]) -> None:
        """Seal a checkpoint and give it its name in `place`."""
        self.state.save_to_json(str(written / "trainer_state.json"))
        sealing.seal(written, None if self.pruner is None else self.pruner.state_dict(), run)
        shutil.rmtree(place / written.name, ignore_errors=True)
        os.replace(written, place / written.name)

    def _logged_so_far(self) -> dict[str, Any]:
        """The sums behind the next log line, as text, since JSON has no nan. A call of all processes."""
        return {
            "loss": repr(float(self.accelerator.gather(self._tr_loss).mean())),
            "logged": self._globalstep_last_logged,
            "distillation": None if self._teacher is None else self._teacher.sums(),
        }

    def _go_on_summing(self) -> None:
        """After the Trainer has set its sums to zero: those of the checkpoint."""
        if self._sums:
            before = float(self._sums["loss"])
            self._tr_loss += before
            self._total_loss_scalar -= before  # of steps before this call of train()
            self._globalstep_last_logged = self._sums["logged"]
            if self._teacher is not None and self._sums["distillation"] is not None:
                self._teacher.go_on(*self._sums["distillation"])
        self._sums = {}

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint that verifies; the pruner goes on from its step."""
        state = sealing.verify(Path(resume_from_checkpoint))
        if (state is None) != (self.pruner is None):
            raise FinepruneError(
                f"{resume_from_checkpoint}: a {'dense' if state is None else 'pruning'} run's checkpoint; "
                f"this run is {'dense' if self.pruner is None else 'a pruning run'}"
            )
        made = sealing.run_of(Path(resume_from_checkpoint))
        changed = processes.check_resumed(resume_from_checkpoint, made, processes.written_by(self))
        if changed is not None and self.is_world_process_zero():
            _log.warning("%s", changed)
        self._sums = made.get("sums") or {}
        if self.pruner is not None and state is not None:
            self.pruner.load_state_dict(state)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Only states at the final density compete: an early one is better, and not pruned."""
        if self.pruner is not None and not self.pruner.at_final_density:
            return False
        return bool(super()._determine_best_metric(metrics, trial))

    def _check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.pruner is not None
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        scores: list[Tensor | None] = [target.masked.scores for target in self.pruner.targets]
        if any(entry is not None and id(entry) not in known for entry in scores):
            raise FinepruneError(
                "the optimizer was built before the model had scores; leave `optimizers` out: the trainer "
                "makes one, of the class that its arguments name"
            )


class _PruningSteps(TrainerCallback):  # type: ignore[misc]
    """Counts optimizer steps into the pruner, before the Trainer logs, evaluates or saves."""

    def __init__(self, trainer: PruningTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._read_teacher()
        self._trainer._go_on_summing()
        self._trainer._finite = FiniteLoss()
        pruner = self._trainer.pruner
        if pruner is None:
            return
        if pruner.schedule.total != state.max_steps:
            raise FinepruneError(
                f"the run takes {state.max_steps} steps, but pruning was planned over "
                f"{pruner.schedule.total}: data or arguments changed since then; make a new trainer"
            )
        if pruner.steps_done != state.global_step:
            raise FinepruneError(
                f"pruning stands at step {pruner.steps_done}, training at {state.global_step}: "
                "train() was called again; make a new trainer, or resume from a checkpoint"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer, pruner, every = self._trainer, self._trainer.pruner, self._trainer.check_masks
        folder = Path(args.output_dir)
        if trainer._finite.due(control):
            trainer._finite.check(folder, trainer.model)
        if pruner is not None:
            try:
                pruner.step()
            except FinepruneError:
                trainer._finite.refuse(folder, trainer.model)  # which is why scores are nan, where they are
                raise
            if every is not None and pruner.steps_done % every == 0:
                pruner.check_masks()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._finite.check(Path(args.output_dir), self._trainer.model)
