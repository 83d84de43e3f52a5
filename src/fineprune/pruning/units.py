"""Units: what stays or goes together in one matrix, and what each costs of the density.

A grid says how the units of one kind lie in one matrix. A unit that spans several matrices, a head or a
neuron, is masked where it is read, in O or FFN-out; its other weights are followers, which its mask does not
touch while the model trains. They cannot be seen there, count as the unit's, and are zeroed at the end.
"""

from dataclasses import dataclass

from torch import Tensor

from fineprune.errors import FinepruneError
from fineprune.pruning import anatomy
from fineprune.pruning.expansion import Blocks, Expansion, Identity, Lines


@dataclass(frozen=True, eq=False)
class Grid:
    """The units of one kind in one matrix.

    Attributes:
        kind: The name of the kind, for messages.
        shape: The shape of scores and flags, one entry a unit.
        expansion: The map between the grid and the matrix.
        weights: Weights of a unit, followers included.
        product: Multiply-adds that the attention product takes of a unit for each token of a text.
        by_flops: Whether multiply-adds are the budget; else weights are.
        times: Milliseconds of the first, second, … unit that stays, where latency is the budget; else empty.
        dense_ms: Milliseconds of the whole dense model, beside `times`.
        reader: The dotted name of the matrix, where there are followers.
        followers: The lines of other matrices that belong to the units.
        part: The part of the structure that the grid belongs to; its own density counts for the grid.
        half: The name of the attention or the feed-forward, of units of several matrices.
        head_size: The units of each group of heads where they are dims of it; else 0.
    """

    kind: str
    shape: tuple[int, ...]
    expansion: Expansion
    weights: int
    product: int = 0
    by_flops: bool = False
    times: tuple[float, ...] = ()
    dense_ms: float = 0.0
    reader: str = ""
    followers: tuple[anatomy.Lines, ...] = ()
    part: str = ""
    half: str = ""
    head_size: int = 0

    @property
    def is_elements(self) -> bool:
        """Whether the grid is the matrix itself."""
        return isinstance(self.expansion, Identity)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of a unit for each token of a text."""
        return self.weights + self.product

    @property
    def cost(self) -> float:
        """What a unit takes of the budget; of milliseconds, which depend on the others, the mean."""
        if self.times:
            return sum(self.times) / len(self.times)
        return self.multiply_adds if self.by_flops else self.weights

    @property
    def may_be_empty(self) -> bool:
        """Whether a ranking may leave nothing of the matrix: an empty half of a block is an answer."""
        return bool(self.followers)


def elements(name: str, weight: Tensor) -> Grid:
    """Return the grid of single weights, whatever the shape of the matrix."""
    return Grid("element", tuple(weight.shape), Identity(), 1)


def blocks(name: str, weight: Tensor, rows: int, columns: int, transposed: bool = False) -> Grid:
    """Return the grid of blocks of `rows` outputs x `columns` inputs.

    Args:
        name: The name of the layer, for messages.
        weight: Its matrix, as it is stored.
        rows: The outputs of a block.
        columns: The inputs of a block.
        transposed: Whether the matrix is stored as inputs x outputs, as that of transformers' Conv1D.

    Raises:
        FinepruneError: The blocks do not divide the matrix, or it has no two dimensions.
    """
    _check_matrix(name, weight)
    outputs, inputs = weight.shape[::-1] if transposed else weight.shape
    for what, size, part in (("rows", outputs, rows), ("columns", inputs, columns)):
        if size % part:
            divisors = ", ".join(str(number) for number in range(1, size + 1) if size % number == 0)
            raise FinepruneError(
                f"{name}: {rows} x {columns} blocks do not divide {outputs} x {inputs}; "
                f"block {what} that divide {size}: {divisors}"
            )
    down, across = (columns, rows) if transposed else (rows, columns)
    shape = (weight.shape[0] // down, weight.shape[1] // across)
    return Grid(f"{rows} x {columns} block", shape, Blocks(down, across), rows * columns)


def rows(name: str, weight: Tensor, transposed: bool = False) -> Grid:
    """Return the grid of whole rows, the outputs of a linear layer, however its matrix is stored."""
    return _lines("row", name, weight, int(transposed))


def columns(name: str, weight: Tensor, transposed: bool = False) -> Grid:
    """Return the grid of whole columns, the inputs of a linear layer, however its matrix is stored."""
    return _lines("column", name, weight, int(not transposed))


def _lines(kind: str, name: str, weight: Tensor, axis: int) -> Grid:
    """Return the grid of the lines along an axis of the matrix as it is stored."""
    _check_matrix(name, weight)
    count, size = weight.shape[axis], weight.shape[1 - axis]
    return Grid(kind, (count,), Lines(axis, range(count), size), size)


def _check_matrix(name: str, weight: Tensor) -> None:
    if weight.ndim != 2:
        raise FinepruneError(
            f"{name}: its weight has {weight.ndim} dimensions, and blocks, rows and columns are of matrices; "
            "leave the "
            "layer out with exclude"
        )
