"""The mean of a loss since the last line of the log."""

import torch
from torch import Tensor

from fineprune.pruning.distributed import agreement


class RunningMean:
    """Averages scalars that stay on their device until somebody asks, so that no step waits for one.

    With several processes it is the mean over all of them, and `take` and `sums` are calls of all.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        """Count a scalar; its gradient is left alone."""
        self._sum = value.detach() if self._sum is None else self._sum + value.detach()
        self._count += 1

    def take(self) -> float | None:
        """Return the mean of the values since the last call; None where there were none."""
        total, count = self._sum, self._count
        self._sum, self._count = None, 0
        return None if total is None else agreement.mean(float(total)) / count

    def sums(self) -> tuple[str, int] | None:
        """Return the sum so far, as text that loses no bit, and the number of values; None for no value."""
        return None if self._sum is None else (repr(agreement.mean(float(self._sum))), self._count)

    def go_on(self, total: str, count: int) -> None:
        """Continue from the result of `sums`."""
        self._sum, self._count = torch.tensor(float(total)), count
