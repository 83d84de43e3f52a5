"""Report on a run while it trains: a progress bar, a line of metrics for each log, the seconds."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from fineprune._files import write_text
from fineprune.training.host import sealing
from fineprune.training.run.run_folder import CHECKPOINTS

SECONDS = 30.0
"""Between two lines of `ProgressLines`, at least."""


def _loss(logs: Mapping[str, float]) -> float:
    """Return the loss without a penalty, which would drown it; the teacher's where there are no labels."""
    return logs.get("task_loss") or logs.get("distillation", logs["loss"])


class ProgressBar(ProgressCallback):  # type: ignore[misc]
    """Show the Trainer's progress bars over steps and evaluations, without a line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            shown = {"loss": f"{_loss(logs):.3g}"}
            if "density" in logs:
                shown["density"] = f"{logs['density']:.3g}"
            self.training_bar.set_postfix(shown)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        super().on_prediction_step(*args, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.leave = False  # also that of the finished model
            self.prediction_bar.set_description("evaluation", refresh=False)


class ProgressLines(TrainerCallback):  # type: ignore[misc]
    """Print a line of progress now and then, where there is no terminal for a bar: in CI, under Slurm."""

    def __init__(self) -> None:
        self._begin = self._said = time.monotonic()
        self._first = 0
        self._loss = ""
        self._batches, self._evaluation = 0, self._begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin = self._said = time.monotonic()
        self._first = state.global_step
        done = f", {self._first:,} of them are done" if self._first else ""
        steps = f"{state.max_steps:,} step{'s' * (state.max_steps != 1)}"
        self._say(f"training: {steps}{done}, evaluated every {args.eval_steps:,.0f}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._loss = f", loss {_loss(logs):.3g}"
            if "density" in logs:
                self._loss += f", density {logs['density']:.1%}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now, done = time.monotonic(), state.global_step - self._first
        if now - self._said >= SECONDS and state.global_step < state.max_steps:
            remaining = (now - self._begin) / done * (state.max_steps - state.global_step)
            self._say(
                f"step {state.global_step:,} of {state.max_steps:,}{self._loss}, {duration(remaining)} left"
            )

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        now, total = time.monotonic(), len(eval_dataloader)
        if self._batches == 0:
            self._evaluation = now
        self._batches += 1
        if now - self._said >= SECONDS and 1 < self._batches < total:
            remaining = (now - self._evaluation) / (self._batches - 1) * (total - self._batches)
            self._say(f"evaluation: batch {self._batches:,} of {total:,}, {duration(remaining)} left")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._batches = 0
        name = f"eval_{args.metric_for_best_model}"
        if metrics and name in metrics:
            self._say(f"step {state.global_step:,}: {args.metric_for_best_model} {metrics[name]:.2%}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: seconds, minutes from 90 s on, hours from 90 min on."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class OneLastEvaluation(TrainerCallback):  # type: ignore[misc]
    """Leave out the evaluation of the last step: the finished model, the same one, is scored anyway."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and not args.load_best_model_at_end:
            control.should_evaluate = False


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Write every log as a line of JSON; on resume, drop the lines logged after the checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = self._path.with_name(CHECKPOINTS)
        with sealing.writing(self._path, folder), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(state.log_history[-1]) + "\n")


class Clock(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Count the seconds of training, including those before a resume, which the checkpoint stores."""

    def __init__(self) -> None:
        self._begin, self._before = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and type(self).__name__ in state.stateful_callbacks:
            self._before = state.stateful_callbacks[type(self).__name__]["attributes"]["seconds"]

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"seconds": self.seconds}}
