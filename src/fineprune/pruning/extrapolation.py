"""Gradients ahead of the weights (Lin et al. 2020, arXiv:2006.05720), around any optimizer and any method.

The gradient is taken at w - ahead·d, where d is the gradient of the last step, and the step is made from w.
No pass is added.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fineprune.errors import FinepruneError


class Extrapolation:
    """Take gradients ahead of the weights.

    In a loop, `with extrapolation: model(**batch).loss.backward()`, then `optimizer.step()` outside. The
    block leaves the weights exactly as they were, so that masks, evaluations and checkpoints see these.

    Args:
        optimizer: The optimizer of the weights; make it first.
        ahead: How far to look, at least 0. None: the learning rate of each parameter, for SGD.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, ahead: float | None = None) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise FinepruneError(f"optimizer={type(optimizer).__name__}: give one of torch.optim")
        if ahead is not None and (
            isinstance(ahead, bool) or not isinstance(ahead, (int, float)) or not 0 <= ahead < float("inf")
        ):
            raise FinepruneError(
                f"ahead={ahead!r}: must be a number, 0 or more, or None for the learning rate"
            )
        self._optimizer, self._ahead = optimizer, ahead
        self._last: dict[int, Tensor] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []
        optimizer.register_step_pre_hook(self._note)

    @torch.no_grad()
    def __enter__(self) -> None:
        for number, (parameter, rate) in enumerate(self._parameters()):
            if number in self._last:
                self._kept.append((parameter, parameter.detach().clone()))
                parameter.sub_(self._last[number], alpha=rate)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for parameter, before in self._kept:
            parameter.copy_(before)
        self._kept.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the last gradients, by the parameters' places in the optimizer, for a checkpoint."""
        return {str(number): gradient for number, gradient in self._last.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            FinepruneError: It is of another optimizer.
        """
        parameters = [parameter for parameter, _ in self._parameters()]
        for number, gradient in state.items():
            if int(number) >= len(parameters) or parameters[int(number)].shape != gradient.shape:
                raise FinepruneError(f"the saved gradients are of another optimizer: number {number} differs")
        self._last = {int(n): gradient.to(parameters[int(n)]).clone() for n, gradient in state.items()}

    def _parameters(self) -> Iterator[tuple[Tensor, float]]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                yield parameter, float(group["lr"]) if self._ahead is None else self._ahead

    def _note(self, *_: Any) -> None:
        if self._kept:
            raise FinepruneError(
                "optimizer.step() inside the block of an Extrapolation would be undone at its end"
            )
        for number, (parameter, _rate) in enumerate(self._parameters()):
            if parameter.grad is not None:
                self._last[number] = parameter.grad.detach().clone()
