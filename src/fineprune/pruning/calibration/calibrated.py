"""What `calibrate` returns: what remains of each matrix, and how far its output moved."""

from dataclasses import dataclass
from typing import NamedTuple


class CutMatrix(NamedTuple):
    """One matrix: its dotted name and shape, its remaining and total weights, and the error of its output."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int
    error: float | None
    """||(W' - W) X|| / ||W X|| on the batches; None where another matrix reads what was cut."""


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` did; prints as a table with a line for each matrix.

    Attributes:
        method: How weights were chosen and corrected.
        matrices: In the order in which they were cut.
        tokens: Tokens, without padding, that a matrix saw at most.
        seconds: The time it took.
    """

    method: str
    matrices: tuple[CutMatrix, ...]
    tokens: int
    seconds: float

    @property
    def kept(self) -> int:
        """The remaining weights of the target matrices."""
        return sum(matrix.kept for matrix in self.matrices)

    @property
    def total(self) -> int:
        """All weights of the target matrices."""
        return sum(matrix.total for matrix in self.matrices)

    @property
    def density(self) -> float:
        """The share of weights that remain, 0 to 1."""
        return self.kept / self.total

    @property
    def error(self) -> float:
        """The mean over the matrices of the relative error of their output."""
        errors = [matrix.error for matrix in self.matrices if matrix.error is not None]
        return sum(errors) / len(errors)

    def __str__(self) -> str:
        width = max(len(matrix.name) for matrix in self.matrices)
        lines = [f"{'matrix':{width}}  {'shape':>12}  {'kept':>12}  {'of':>12}  density   error"]
        rows = [*self.matrices, CutMatrix("all", (), self.kept, self.total, self.error)]
        for name, shape, kept, total, error in rows:
            size, moved = " x ".join(map(str, shape)), "" if error is None else f"{error:.2%}"
            counts = f"{kept:>12,}  {total:>12,}  {kept / total:7.2%}"
            lines.append(f"{name:{width}}  {size:>12}  {counts}  {moved:>6}".rstrip())
        return "\n".join([*lines, f"{self.method}, on {self.tokens:,} tokens, in {self.seconds:.1f} seconds"])

    __repr__ = __str__
