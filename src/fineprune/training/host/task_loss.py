"""The loss of the task alone in the log, beside the loss with a teacher's share and a penalty."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fineprune.training.distillation.running_mean import RunningMean
from fineprune.training.host.part import MicroBatch, Part


class TaskLoss(Part):
    """Logs the host's own loss as `task_loss`; it comes before the parts that change the loss."""

    def __init__(self) -> None:
        self._mean = RunningMean()

    def change_loss(self, loss: Tensor, batch: MicroBatch) -> Tensor:
        self._mean.add(loss * batch.parts)
        return loss

    def logged(self, line: Mapping[str, float]) -> dict[str, float]:
        mean = self._mean.take() if "loss" in line else None
        return {} if mean is None else {"task_loss": mean}

    def sums(self) -> dict[str, Any]:
        return {"task_loss": self._mean.sums()}

    def go_on(self, sums: Mapping[str, Any]) -> None:
        if sums.get("task_loss") is not None:
            self._mean.go_on(*sums["task_loss"])
