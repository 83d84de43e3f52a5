"""Trainings that end early: stopped by a signal, or by a loss that is not finite."""

import contextlib
import logging
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement, ranks
from fineprune.training.host import sealing
from fineprune.training.host.preemption import AnswersSignals, ending

_EVERY = 10  # steps between the processes' asking each other
_NEVER = torch.iinfo(torch.int64).max
_log = logging.getLogger("fineprune")

AGAIN = "the same command with --resume"
"""What goes on with a run that a signal stopped; a study has no --resume."""


class StopsAtSignals(AnswersSignals, TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint before Ctrl-C, SIGTERM or SIGHUP ends a training; use it as a context.

    Outside the training they end the program at once. During it, they let the step end and save first, and
    only a second Ctrl-C does not wait: SIGTERM comes twice where a launcher passes on what its whole job
    gets. Several processes stop at the same step, even if one alone got the signal.
    """

    def __init__(self, again: str = AGAIN) -> None:
        """`again` is what goes on with a training that was stopped, for the message."""
        self._again = again
        self._training = False
        self._signal: int | None = None  # the one that came
        self._stop = False  # agreed on by all processes

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if agreement.several() and state.global_step % _EVERY:
            return
        if self._agreed():
            control.should_save = control.should_training_stop = True

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the training."""
        return self._stop

    def leave(self, folder: Path, step: int, first: bool) -> None:
        """End the program, after the training, if a signal came. A call of all processes.

        Args:
            folder: has the checkpoints.
            step: the last optimizer step.
            first: whether this is the first process.
        """
        if not self._stop and not self._agreed():  # since they last asked each other
            return
        number = self._signal or signal.SIGTERM  # another process got it
        if first:
            _log.warning(
                "stopped by %s after step %d, saved in %s; %s goes on",
                signal.Signals(number).name,
                step,
                folder / f"checkpoint-{step}",
                self._again,
            )
        raise ending(number)

    def _agreed(self) -> bool:
        came = self._signal is not None
        if agreement.several():
            came = bool(agreement.unlike([int(came)])) or came
        self._stop = came
        return came

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._training or (self._signal is not None and number == signal.SIGINT):
            raise ending(number)
        if self._signal is not None:
            return
        self._signal = number
        with contextlib.suppress(OSError):  # of a pipe whose reader the same Ctrl-C has ended
            # Not print, nor logging: the signal may have come in the middle of theirs.
            os.write(2, b"\nfineprune: stopping after this step, with a checkpoint; Ctrl-C to stop at once\n")


class FiniteLoss:
    """Finds the first step whose loss is nan or infinite, without waiting for the device each step."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # int64, on the loss's device

    def forget(self) -> None:
        """Start anew, with a training."""
        self._first = None

    def note(self, loss: Tensor, step: int) -> None:
        """Look at a loss, or those of several devices, of the optimizer step `step`, counted from 1."""
        if self._first is None:
            self._first = torch.tensor(_NEVER, device=loss.device)
        at = torch.where(torch.isfinite(loss.detach()).all(), self._first, step)
        self._first = torch.minimum(self._first, at)

    def check(self, folder: Path, model: nn.Module, saving: bool = False) -> None:
        """Raise `FinepruneError` if a loss was not finite and now weights are not either.

        With `saving`, for such weights alone. A call of all processes.

        Args:
            folder: has the checkpoints.
            model: the one that is trained.
            saving: whether the weights are about to be saved.
        """
        with agreement.together("training"):
            self.refuse(folder, model)
            spoilt = _spoilt(model) if saving else None
            if spoilt is not None:
                raise FinepruneError(f"{spoilt} became nan or infinite; {_remedy(folder)}")

    def refuse(self, folder: Path, model: nn.Module) -> None:
        """Raise likewise, in this process alone, for a loss.

        One that spoilt nothing is logged and forgotten: where no token has a label, the mean over them is
        nan, and its gradient zero.
        """
        step = _NEVER if self._first is None else int(self._first)
        if step == _NEVER:
            return
        self._first = None
        if _spoilt(model) is not None:
            raise FinepruneError(f"step {step}: the loss is nan or infinite; {_remedy(folder)}")
        _log.warning("step %d: the loss is nan or infinite, not the weights: no label in its batch?", step)

    def due(self, control: TrainerControl) -> bool:
        """Return whether to `check` now: where something waits for the device; on a CPU, alone, always."""
        waits = control.should_log or control.should_evaluate
        free = self._first is not None and self._first.device.type == "cpu" and not agreement.several()
        return bool(waits or free)


def _spoilt(model: nn.Module) -> str | None:
    """Return the name of the first trained parameter that has a value which is not finite."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(ranks.local(parameter.detach())).all()):
            return name
    return None


def _remedy(folder: Path) -> str:
    newest, _ = sealing.newest_whole(folder)
    last = "no checkpoint was written before" if newest is None else f"the last good checkpoint is {newest}"
    return f"{last}. Resuming would diverge again; start a new run with a lower learning rate"
