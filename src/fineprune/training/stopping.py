"""How a training ends before its end: told to by a signal, or by a loss that is no number."""

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
from fineprune.pruning import agreement, sharded
from fineprune.training import checkpoints

PREEMPTED = 75
"""Exit code of a run that SIGTERM stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""

_EVERY = 10  # steps between the processes' asking each other
_NEVER = torch.iinfo(torch.int64).max
_log = logging.getLogger("fineprune")


class StopsAtSignals(TrainerCallback):  # type: ignore[misc]
    """While it is entered, Ctrl-C and SIGTERM end the program. During the training they let the step end
    and save a checkpoint first, and a second signal does not. Several processes stop at the same step, if
    only one was told. Outside the main thread, where Python allows no handlers, signals do what they did.
    """

    def __init__(self) -> None:
        self._training = False
        self._told: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopsAtSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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
        told = self._told is not None
        if agreement.several():
            if state.global_step % _EVERY:
                return
            told = bool(agreement.unlike([int(told)])) or told
        if told:
            self._told = self._told or signal.SIGTERM  # another process was
            control.should_save = control.should_training_stop = True

    def leave(self, folder: Path, step: int, first: bool) -> None:
        """After the training: raise what ends the program if a signal came; `folder` has the checkpoints."""
        if self._told is None:
            return
        if first:
            _log.warning(
                "stopped by %s after step %d, saved in %s; the same command with --resume goes on",
                signal.Signals(self._told).name,
                step,
                folder / f"checkpoint-{step}",
            )
        raise _ending(self._told)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._told is not None or not self._training:
            raise _ending(number)
        self._told = number
        # Not print, nor logging: the signal may have come in the middle of theirs.
        os.write(2, b"\nfineprune: stopping after this step, with a checkpoint; again to stop at once\n")


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(PREEMPTED)


class FiniteLoss:
    """The first step whose loss was nan or infinite, found without waiting for the device each step."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # int64, on the loss's device

    def note(self, loss: Tensor, step: int) -> None:
        """Look at a loss of the optimiser step `step`, counted from 1."""
        if self._first is None:
            self._first = torch.tensor(_NEVER, device=loss.device)
        at = torch.where(torch.isfinite(loss.detach()), self._first, step)
        self._first = torch.minimum(self._first, at)

    def check(self, folder: Path, model: nn.Module | None = None) -> None:
        """Raise `FinepruneError` if a loss was not finite or, of a model that is to be saved, a parameter is
        not. A call of all processes. `folder` is where the checkpoints are.
        """
        with agreement.together("training"):
            self.refuse(folder)
            for name, parameter in () if model is None else model.named_parameters():
                if not bool(torch.isfinite(sharded.local(parameter.detach())).all()):
                    raise FinepruneError(f"{name} became nan or infinite; {_remedy(folder)}")

    def refuse(self, folder: Path) -> None:
        """Raise `FinepruneError` if a loss of this process was not finite."""
        if self._first is not None and int(self._first) < _NEVER:
            raise FinepruneError(f"step {int(self._first)}: the loss is nan or infinite; {_remedy(folder)}")

    def due(self, control: TrainerControl) -> bool:
        """Whether to `check` now: where something waits for the device anyway, and alone on a CPU always."""
        waits = control.should_log or control.should_evaluate
        free = self._first is not None and self._first.device.type == "cpu" and not agreement.several()
        return bool(waits or free)


def _remedy(folder: Path) -> str:
    newest, _ = checkpoints.newest_whole(folder)
    kept = "no checkpoint was written before" if newest is None else f"the last good checkpoint is {newest}"
    return f"{kept}. The same steps would lead here again: begin anew with a lower learning rate"
