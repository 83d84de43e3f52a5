"""The moments of a training loop at which its parts act, before the host logs, evaluates or saves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fineprune.errors import FinepruneError
from fineprune.training.host.checkpoints import Checkpoints
from fineprune.training.host.part import Part
from fineprune.training.host.stopping import FiniteLoss


class Steps(TrainerCallback):  # type: ignore[misc]
    """Lets the parts follow each optimizer step, and stops a training whose loss is not finite."""

    def __init__(
        self,
        parts: Sequence[Part],
        checkpoints: Checkpoints,
        finite: FiniteLoss,
        folder: Callable[[], Path],
    ) -> None:
        """Take the parts in their order; `folder` returns the folder of the checkpoints."""
        self._parts, self._checkpoints = parts, checkpoints
        self._finite, self._folder = finite, folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for part in self._parts:
            part.before_training(state.max_steps, state.global_step)
        self._checkpoints.go_on_summing()
        self._finite.forget()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder, model = self._folder(), kwargs["model"]
        if self._finite.due(control):
            self._finite.check(folder, model)
        try:
            for part in self._parts:
                part.after_step()
        except FinepruneError:
            self._finite.refuse(folder, model)  # if it was not finite, that is why scores are nan
            raise

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._finite.check(self._folder(), kwargs["model"])
