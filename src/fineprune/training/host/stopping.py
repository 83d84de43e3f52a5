"""How a training ends before its end: told to by a signal, or by a loss that is no number."""

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement, ranks
from fineprune.training.host import sealing

PREEMPTED = 75
"""Exit code of a run that SIGTERM stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""

_EVERY = 10  # steps between the processes' asking each other
_NEVER = torch.iinfo(torch.int64).max
_log = logging.getLogger("fineprune")


class StopsAtSignals(TrainerCallback):  # type: ignore[misc]
    """While it is entered, Ctrl-C and SIGTERM end the program. During the training they let the step end
    and save a checkpoint first, and only a second Ctrl-C does not wait: SIGTERM comes twice where a whole job
    is told and its launcher passes it on. Several processes stop at the same step, if only one was told.
    What the parent chose to ignore is ignored, and outside the main thread Python allows no handlers.
    """

    def __init__(self) -> None:
        self._training = False
        self._told: int | None = None  # the signal that came
        self._stop = False  # what all processes agreed on
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopsAtSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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

    def leave(self, folder: Path, step: int, first: bool) -> None:
        """After the training: raise what ends the program if a signal came; `folder` has the checkpoints. A
        call of all processes.
        """
        if not self._stop and not self._agreed():  # since they last asked each other
            return
        number = self._told or signal.SIGTERM  # another process was told
        if first:
            _log.warning(
                "stopped by %s after step %d, saved in %s; the same command with --resume goes on",
                signal.Signals(number).name,
                step,
                folder / f"checkpoint-{step}",
            )
        raise _ending(number)

    def _agreed(self) -> bool:
        told = self._told is not None
        if agreement.several():
            told = bool(agreement.unlike([int(told)])) or told
        self._stop = told
        return told

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._training or (self._told is not None and number == signal.SIGINT):
            raise _ending(number)
        if self._told is not None:
            return
        self._told = number
        with contextlib.suppress(OSError):  # of a pipe whose reader the same Ctrl-C has ended
            # Not print, nor logging: the signal may have come in the middle of theirs.
            os.write(2, b"\nfineprune: stopping after this step, with a checkpoint; Ctrl-C to stop at once\n")


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(PREEMPTED)


class FiniteLoss:
    """The first step whose loss was nan or infinite, found without waiting for the device each step."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # int64, on the loss's device

    def note(self, loss: Tensor, step: int) -> None:
        """Look at a loss, or those of several devices, of the optimizer step `step`, counted from 1."""
        if self._first is None:
            self._first = torch.tensor(_NEVER, device=loss.device)
        at = torch.where(torch.isfinite(loss.detach()).all(), self._first, step)
        self._first = torch.minimum(self._first, at)

    def check(self, folder: Path, model: nn.Module, saving: bool = False) -> None:
        """Raise `FinepruneError` if a loss was not finite and now weights are not either, or if they are to
        be saved so. A call of all processes. `folder` is where the checkpoints are.
        """
        with agreement.together("training"):
            self.refuse(folder, model)
            spoilt = _spoilt(model) if saving else None
            if spoilt is not None:
                raise FinepruneError(f"{spoilt} became nan or infinite; {_remedy(folder)}")

    def refuse(self, folder: Path, model: nn.Module) -> None:
        """The same of this process alone, and for a loss alone. One that spoilt nothing is told and
        forgotten: where no token has a label, the mean over them is nan, and its gradient zero.
        """
        step = _NEVER if self._first is None else int(self._first)
        if step == _NEVER:
            return
        self._first = None
        if _spoilt(model) is not None:
            raise FinepruneError(f"step {step}: the loss is nan or infinite; {_remedy(folder)}")
        _log.warning("step %d: the loss is nan or infinite, not the weights: no label in its batch?", step)

    def due(self, control: TrainerControl) -> bool:
        """Whether to `check` now: where something waits for the device anyway, and alone on a CPU always."""
        waits = control.should_log or control.should_evaluate
        free = self._first is not None and self._first.device.type == "cpu" and not agreement.several()
        return bool(waits or free)


def _spoilt(model: nn.Module) -> str | None:
    """The first trained parameter that has a value which is not finite."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(ranks.local(parameter.detach())).all()):
            return name
    return None


def _remedy(folder: Path) -> str:
    newest, _ = sealing.newest_whole(folder)
    kept = "no checkpoint was written before" if newest is None else f"the last good checkpoint is {newest}"
    return f"{kept}. The same steps would lead here again: begin anew with a lower learning rate"
