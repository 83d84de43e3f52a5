"""What a cut of one matrix reads: its weight, and the second moments of its inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.pruning.selection import fill_masks, find_threshold
from fineprune.pruning.targets import is_pointwise

DAMPING = 0.01
"""What is added to the diagonal of H, as a share of its mean."""


@dataclass(frozen=True)
class Layer:
    """One matrix W of y = Wx, and H = (2/N) sum x x^T of its inputs.

    Attributes:
        name: The dotted name, for messages.
        weight: (outputs, inputs), in the type to compute in; it is not changed.
        gram: (inputs, inputs): H without damping.
        damping: Share of the mean of H's diagonal that is added to the diagonal.
    """

    name: str
    weight: Tensor
    gram: Tensor
    damping: float = DAMPING

    @property
    def alive(self) -> Tensor:
        """(inputs,), bool: the inputs that were not always 0."""
        return self.gram.diagonal() > 0

    @property
    def hessian(self) -> Tensor:
        """H with damping; 1 on the diagonal of inputs that were always 0."""
        diagonal = self.gram.diagonal()
        hessian = self.gram.clone()
        hessian.diagonal().add_(self.damping * diagonal.mean())
        hessian.diagonal()[~self.alive] = 1
        return hessian

    def with_unseen(self, matrix: Tensor, count: int) -> Tensor:
        """Return a cut matrix with the `count` largest weights of inputs that were always 0, as they were."""
        if count <= 0:
            return matrix
        return matrix + self.weight * best(self.weight.abs().masked_fill(self.alive, -1), count)

    def error(self, weight: Tensor) -> float:
        """Return ||(W' - W) X|| / ||W X|| of another weight W'; 0 where nothing comes out of W."""
        squares = [
            float(((matrix @ self.gram) * matrix).sum()) for matrix in (weight - self.weight, self.weight)
        ]
        return (max(squares[0], 0.0) / squares[1]) ** 0.5 if squares[1] > 0 else 0.0


def as_matrix(module: nn.Module) -> Tensor:
    """Return the weight as (outputs, inputs), a view."""
    weight = module.get_parameter("weight").detach()
    if is_pointwise(module):
        return weight.flatten(1)
    return weight if isinstance(module, nn.Linear) else weight.mT  # transformers' Conv1D


def factor(matrix: Tensor, name: str) -> Tensor:
    """Return the lower Cholesky factor of a matrix.

    Raises:
        FinepruneError: It is not positive definite; the message has the name.
    """
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) or not bool(lower.isfinite().all()):
        raise not_definite(name)
    return lower


def not_definite(name: str) -> FinepruneError:
    """Return the error to raise for a matrix whose inputs cannot be inverted."""
    return FinepruneError(
        f"{name}: the second moments of its inputs are not positive definite, damped by {DAMPING:g} of their "
        "mean: give more and longer texts, leave the matrix out with exclude, or use method='wanda'"
    )


def best(scores: Tensor, keep: int) -> Tensor:
    """Return the mask of the `keep` highest scores; of equal ones the lower flat index wins."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if keep:
        fill_masks([mask], [scores], find_threshold([scores], keep))
    return mask
