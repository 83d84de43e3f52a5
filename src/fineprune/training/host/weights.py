"""The weights of a training, dense or pruned: their optimizer groups, their masks, their checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fineprune.checkpoint.prepared_models import engine_checkpoint
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed.gathering import gather_state_dict
from fineprune.pruning.pruner import Pruner
from fineprune.training.distillation.running_mean import RunningMean
from fineprune.training.host.folding import is_prepared, ordinary_copy, take_weights
from fineprune.training.host.measuring import check_rows, task_losses
from fineprune.training.host.part import MicroBatch, Part, prefix_of

PRUNING = "pruning.safetensors"
"""The file of a checkpoint with what folded weights do not show."""


class Weights(Part):
    """The weights of a dense training: the host does everything by itself."""

    at_final_density = True

    def attach(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Let an optimizer of the host move what this part trains."""

    def save_model(self, host_save: Callable[[], None], folder: str | None) -> None:
        """Write a model folder, as `host_save` writes it."""
        host_save()

    def save_checkpoint(self, host_save: Callable[[], None]) -> None:
        """Write the model's part of a checkpoint, as `host_save` writes it."""
        host_save()

    def save_rest(self, folder: Path) -> None:
        """Write what a checkpoint needs beside the host's files, and `state`."""

    def load(self, folder: Path, host_load: Callable[[], None]) -> None:
        """Load the model's part of a checkpoint, as `host_load` loads it."""
        host_load()

    def state(self) -> dict[str, Any] | None:
        """Return the pruner's plain values for the manifest of a checkpoint; None if dense."""
        return None

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""


class PrunedWeights(Weights):
    """Scores, masks and penalty in their places.

    A checkpoint has the folded weights under ordinary keys, so that it opens as a model, and the rest in a
    file of its own. FSDP2 and DeepSpeed write the prepared model in their own formats instead.
    """

    def __init__(self, host: Any, pruner: Pruner, check_masks: int | None) -> None:
        self._host = host
        self._pruner = pruner
        self._check_masks = check_masks
        self._attached: Any = None
        self._penalty = RunningMean()
        if pruner.measures:
            check_rows(host)
            pruner.measure_on(lambda: task_losses(host, pruner.steps_done))

    @property
    def at_final_density(self) -> bool:  # type: ignore[override]
        return self._pruner.at_final_density

    # -- steps ---------------------------------------------------------------------------------

    def attach(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Give the scores the group and the rule that the config asks for, once for each optimizer.

        Raises:
            FinepruneError: The optimizer lacks the scores, or a scheduler was made for other groups.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has the optimizer in it
        if inner is self._attached:
            return
        entries = {id(entry) for group in inner.param_groups for entry in group["params"]}
        scores = [target.masked.scores for target in self._pruner.scored]
        if any(score is not None and score.requires_grad and id(score) not in entries for score in scores):
            raise FinepruneError(
                "the optimizer was built before the model had scores; leave `optimizers` out: the trainer "
                "makes one, of the class that its arguments name"
            )
        groups = len(inner.param_groups)
        self._pruner.attach(inner)
        if scheduler is not None and len(inner.param_groups) != groups:  # one that leaves no trace in it
            raise FinepruneError(
                "the learning rate scheduler was made before the scores had a group of their own; leave it "
                "out: the trainer makes the one that lr_scheduler_type names"
            )
        self._attached = inner

    def before_training(self, steps: int, steps_done: int) -> None:
        pruner = self._pruner
        if pruner.schedule.total != steps:
            raise FinepruneError(
                f"the run takes {steps} steps, but pruning was planned over {pruner.schedule.total}: data or "
                "arguments changed since then; make a new trainer"
            )
        if pruner.steps_done != steps_done:
            raise FinepruneError(
                f"pruning is at step {pruner.steps_done}, training at step {steps_done}: train() was called "
                "again; make a new trainer, or resume from a checkpoint (which DeepSpeed cannot)"
            )

    def change_loss(self, loss: Tensor, batch: MicroBatch) -> Tensor:
        penalty = self._pruner.penalty()
        if self._pruner.has_penalty:
            self._penalty.add(penalty)
        return loss + penalty / batch.parts

    def logged(self, line: Mapping[str, float]) -> dict[str, float]:
        if prefix_of(line) is None or not is_prepared(self._host.model):
            return {}
        pruner = self._pruner
        left = pruner.left
        values = {"density": left["parameters"]}
        units: dict[str, float] = {kind: left[kind][0] for kind in ("heads", "neurons") if kind in left}
        if units:
            values |= {"flops": left["flops"]} | units
        if pruner.threshold is not None:
            values |= {"threshold": pruner.threshold, "mask_changed": pruner.changed}
        if pruner.has_penalty:  # of a line of training its part of the loss, of an evaluation what it is now
            mean = self._penalty.take() if "loss" in line else None
            now = mean if mean is not None else float(pruner.penalty().detach())
            values |= {"lambda": pruner.lambda_, "penalty": now}
        return values

    def sums(self) -> dict[str, Any]:
        return {"penalty": self._penalty.sums()}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        if sums.get("penalty") is not None:
            self._penalty.go_on(*sums["penalty"])

    def after_step(self) -> None:
        self._pruner.step()
        if self._check_masks is not None and self._pruner.steps_done % self._check_masks == 0:
            self._pruner.check_masks()

    def after_training(self) -> None:
        if is_prepared(self._host.model):
            self._pruner.report()

    # -- checkpoints ---------------------------------------------------------------------------

    def save_model(self, host_save: Callable[[], None], folder: str | None) -> None:
        """Write an ordinary model folder, with zeros in place; a call of all processes."""
        host = self._host
        if self._sharded and is_prepared(host.model):
            state = gather_state_dict(host.model)
            if host.args.should_save:
                host._save(folder, state)
            return
        with self._ordinary():
            host_save()

    def save_checkpoint(self, host_save: Callable[[], None]) -> None:
        with engine_checkpoint() if self._sharded else self._ordinary():
            host_save()

    def save_rest(self, folder: Path) -> None:
        if not self._sharded:
            save_file(self._pruner.tensors(), folder / PRUNING)

    def load(self, folder: Path, host_load: Callable[[], None]) -> None:
        """Let the host load the folded weights, then put scores, masks and hidden weights on top."""
        if self._sharded:
            host_load()
            return
        if not (folder / PRUNING).is_file():
            raise FinepruneError(
                f"{folder}: has no {PRUNING}, so another engine wrote it; resume as it began"
            )
        rest = load_file(folder / PRUNING)
        with self._ordinary() as prepared:
            host_load()
            take_weights(prepared, self._host.model)
        self._pruner.load_tensors(rest)

    def state(self) -> dict[str, Any] | None:
        return self._pruner.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self._pruner.load_state_dict(state)

    @contextmanager
    def _ordinary(self) -> Iterator[Any]:
        """Put an ordinary copy in the place of the host's model for a moment; yields the prepared one."""
        prepared = self._host.model
        if is_prepared(prepared):
            self._host.model = ordinary_copy(prepared)
        try:
            yield prepared
        finally:
            self._host.model = prepared

    @property
    def _sharded(self) -> bool:
        """Whether an engine spreads the parameters over processes and saves them in its own format."""
        return bool(self._host.is_fsdp_enabled or self._host.is_deepspeed_enabled)
