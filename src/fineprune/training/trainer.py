"""PruningTrainer: transformers' Trainer with scores, masks and penalty in their places."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.pruner import Pruner, finalize, prepare
from fineprune.training import checkpoints
from fineprune.training.sampler import GroupedByLength


class PruningTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that prunes while it trains. Takes all arguments of transformers' Trainer, and

    `pruning`: a `PruningConfig`, or None to train densely. The model is prepared in place at
    once, so that a setting which cannot work fails before anything is spent; `trainer.pruner`
    is its `Pruner`. Scores get their own parameter group, the penalty joins the training loss (not the
    evaluation loss), masks follow every optimiser step, and density, threshold and lambda
    appear in the logs. With `load_best_model_at_end`, or `save_strategy="best"`, only states at
    the final density compete. Checkpoints are written whole or not at all, and resume bit for bit.

    After training, `fineprune.finalize(trainer.model)` makes the masks permanent;
    `trainer.save_model(folder)` writes such a finalized copy.
    """

    model: Any
    optimizer: Any

    def __init__(self, *args: Any, pruning: PruningConfig | None = None, **kwargs: Any) -> None:
        if pruning is not None and not isinstance(pruning, PruningConfig):
            raise FinepruneError(f"pruning={pruning!r}: must be a fineprune.PruningConfig, or None")
        super().__init__(*args, **kwargs)
        # Otherwise some models divide their loss by the accumulated item count and the Trainer does not
        # average over micro-batches: the loss comes out too large (transformers issue 47688).
        self.model_accepts_loss_kwargs = False
        self.pruner: Pruner | None = None
        self._staging: Path | None = None
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
        groups = self.pruner.parameter_groups(self.args.learning_rate, self.args.weight_decay)
        self.optimizer = cls(groups, **kwargs)
        return self.optimizer  # type: ignore[no-any-return]

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        """With `group_by_length`, a sampler whose order is a function of seed and epoch: the
        Trainer's own draws from the global generator, and could not resume exactly.
        """
        data = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(data, "__len__"):
            return super()._get_train_sampler(train_dataset)  # type: ignore[no-any-return]
        columns = hasattr(data, "column_names")  # a `datasets.Dataset`, where rows are slow to read
        lengths = [len(ids) for ids in (data["input_ids"] if columns else (row["input_ids"] for row in data))]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return GroupedByLength(
            lengths, batch, self.args.seed if self.args.data_seed is None else self.args.data_seed
        )

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The model's loss, plus the penalty while training."""
        result = super().compute_loss(model, *args, **kwargs)
        if self.pruner is None or not model.training:
            return result
        penalty = self.pruner.penalty()
        if self.compute_loss_func is not None:  # the Trainer then does not average over micro-batches
            penalty = penalty / getattr(self, "current_gradient_accumulation_steps", 1)
        if isinstance(result, tuple):
            return result[0] + penalty, *result[1:]
        return result + penalty

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the masks' state to what is logged during training."""
        if self.pruner is not None and ("loss" in logs or "eval_loss" in logs):
            logs["density"] = self.pruner.density
            if self.pruner.threshold is not None:
                logs["threshold"] = self.pruner.threshold
            if self.pruner.config.traits.takes_penalty:
                logs["lambda"] = self.pruner.lambda_
                logs["penalty"] = float(self.pruner.penalty().detach())
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write an ordinary model folder: a finalized copy, which `from_pretrained` loads.

        The Trainer's own checkpoints keep scores and masks, to go on from.
        """
        if self.pruner is None or _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        training = self.model
        self.model = finalize(copy.deepcopy(training))
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.model = training

    # -- checkpoints ---------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint beside its place, seal it, rename it: a kill leaves no half of one."""
        place = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._staging = place / ".writing"
        shutil.rmtree(self._staging, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            written = self._staging / name
            if self.args.should_save:
                best = self.state.best_global_step
                if best and (best == self.state.global_step or (place / f"checkpoint-{best}").exists()):
                    self.state.best_model_checkpoint = str(place / f"checkpoint-{best}")
                self.state.save_to_json(str(written / "trainer_state.json"))
                checkpoints.seal(written, None if self.pruner is None else self.pruner.state_dict())
                shutil.rmtree(place / name, ignore_errors=True)
                os.replace(written, place / name)
                shutil.rmtree(self._staging)
                # Not by mtime, which a coarse clock makes equal: by number.
                rotate_checkpoints(str(place), limit, self.state.best_model_checkpoint)
        finally:
            self.args.save_total_limit = limit
            self._staging = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint that verifies; the pruner goes on from its step."""
        state = checkpoints.verify(Path(resume_from_checkpoint))
        if (state is None) != (self.pruner is None):
            raise FinepruneError(
                f"{resume_from_checkpoint}: a {'dense' if state is None else 'pruning'} run's checkpoint; "
                f"this run is {'dense' if self.pruner is None else 'a pruning run'}"
            )
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
                "the optimizer was built before the model had scores; leave `optimizers` out, or call "
                "fineprune.prepare yourself and build it from pruner.parameter_groups"
            )


class _PruningSteps(TrainerCallback):  # type: ignore[misc]
    """Counts optimiser steps into the pruner, before the Trainer logs, evaluates or saves."""

    def __init__(self, trainer: PruningTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
        if self._trainer.pruner is not None:
            self._trainer.pruner.step()
