"""The hooks by which pruning and teaching join a training."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor


class MicroBatch(NamedTuple):
    """One batch of a training step, as it went into the host's loss."""

    labels: Tensor | None
    stored: Tensor | None
    """The teacher's answers to it, where they were computed before the training."""

    theirs: Mapping[str, Tensor]
    """The same texts in tokens of the teacher's own; empty where it reads the student's."""

    parts: int
    """The number by which a term of the loss is divided, so that it counts once in an optimizer step."""


def prefix_of(line: Mapping[str, float]) -> str | None:
    """Return what the metrics of a line begin with: "" in training, None if they are of neither.

    Those of an evaluation begin with "eval_", or with "eval_NAME_" of one of several data sets.
    """
    if "loss" in line:
        return ""
    ends = [name.removesuffix("loss") for name in line if name.endswith("_loss") and name != "train_loss"]
    return min(ends, key=len, default=None)  # a metric may be called a loss, too


class Part:
    """Something that joins a training. Every hook does nothing unless a part says otherwise."""

    columns: tuple[str, ...] = ()
    """Columns of the training data that the host must not remove."""

    def before_training(self, steps: int, steps_done: int) -> None:
        """Get ready for a training of `steps` optimizer steps, of which `steps_done` are over."""

    def watching(self) -> AbstractContextManager[Any]:
        """Return a context for the computation of a training loss."""
        return nullcontext()

    def change_loss(self, loss: Tensor, batch: MicroBatch) -> Tensor:
        """Return the training loss with this part's share."""
        return loss

    def logged(self, line: Mapping[str, float]) -> dict[str, float]:
        """Return what a line of the log gets from this part."""
        return {}

    def after_step(self) -> None:
        """Follow an optimizer step."""

    def after_training(self) -> None:
        """Follow a training that has ended, and is not to go on later."""

    def sums(self) -> dict[str, Any]:
        """Return the sums behind the next line of the log, by name, for JSON."""
        return {}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        """Continue from the sums of a checkpoint, of all parts."""
