"""Count the weights and multiply-adds of a model by layer and half, dense and non-zero."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from fineprune.errors import FinepruneError
from fineprune.pruning.anatomy import Attention, Kind, place_of
from fineprune.pruning.distributed.ranks import is_sharded
from fineprune.pruning.empty_units import lines_used
from fineprune.pruning.layout import layout_of
from fineprune.pruning.targets import check_module, find_targets
from fineprune_runtime.dead_units import living_heads

LENGTH = 128
_HALVES: dict[Kind, str] = {"FFN in": "feed-forward", "FFN out": "feed-forward", "other": "other"}


class HalfCosts(NamedTuple):
    """The costs of one half of a layer.

    Attributes:
        stack: The name in front of the layer's number.
        layer: From 0; None where the names of the matrices have no number.
        half: "attention", "feed-forward" or "other".
        weights: Of its matrices, stored once.
        nonzero_weights: Those that are not zero.
        multiply_adds: Of one text, in a runtime that multiplies by zeros too.
        nonzero_multiply_adds: Of one text, in a runtime that leaves out zeros and empty heads.
    """

    stack: str
    layer: int | None
    half: str
    weights: int
    nonzero_weights: int
    multiply_adds: int
    nonzero_multiply_adds: int


@dataclass(frozen=True)
class Costs:
    """The costs of a model's blocks; prints as a table with a line for each half of a layer.

    Norms, activations, softmax, embeddings and the task's head are not counted. A floating-point operation
    (FLOP) is half a multiply-add.
    """

    length: int
    """Tokens of the text."""

    halves: tuple[HalfCosts, ...]

    @property
    def weights(self) -> int:
        """All weights of the blocks."""
        return sum(half.weights for half in self.halves)

    @property
    def nonzero_weights(self) -> int:
        """The weights that are not zero."""
        return sum(half.nonzero_weights for half in self.halves)

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of one text, zeros included."""
        return sum(half.multiply_adds for half in self.halves)

    @property
    def nonzero_multiply_adds(self) -> int:
        """The multiply-adds of one text without those by zeros."""
        return sum(half.nonzero_multiply_adds for half in self.halves)

    def __str__(self) -> str:
        rows = [
            (f"{half.stack}.{half.layer} {half.half}".removeprefix("."), half[3:]) for half in self.halves
        ]
        rows.append(
            (
                "all",
                (self.weights, self.nonzero_weights, self.multiply_adds, self.nonzero_multiply_adds),
            )
        )
        width = max(len(name) for name, _ in rows)
        head = ("weights", "non-zero", "multiply-adds", "non-zero")
        lines = [f"{'layer':{width}}" + "".join(f"  {text:>16}" for text in head)]
        lines += [f"{name:{width}}" + "".join(f"  {count:>16,}" for count in counts) for name, counts in rows]
        return "\n".join([*lines, f"for one text of {self.length} tokens"])

    __repr__ = __str__


@torch.no_grad()
def costs(model: nn.Module, length: int = LENGTH) -> Costs:
    """Count the weights and multiply-adds of the linear layers in a model's blocks, and of its attentions.

    Args:
        model: any model; of one that is being pruned, the weights under the current masks count.
        length: tokens of the text; both texts of an encoder and its decoder have this length.

    Raises:
        FinepruneError: the model is accelerated, sharded, or has no linear layers in repeated blocks.
    """
    check_module(model, "costs")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise FinepruneError(f"length={length!r}: give the number of tokens of a text, 1 or more")
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise FinepruneError("this model is sharded over processes: load the result of gather_state_dict")
    uses = _uses(getattr(model, "config", None))
    totals: dict[tuple[str, int | None, str], list[int]] = {}
    counted: set[int] = set()
    for name, module in find_targets(model).items():
        stack, layer, kind = place_of(name)
        total = totals.setdefault((stack, layer, half_of(kind)), [0, 0, 0, 0])
        weight: Any = module.weight
        if weight.is_meta:
            raise FinepruneError(f"{name}: not in memory (meta device, or offloaded): load the model whole")
        size, nonzero = weight.numel(), int(torch.count_nonzero(weight))
        stored = id(_stored(module)) not in counted
        counted.add(id(_stored(module)))
        for place, count in enumerate(
            (size * stored, nonzero * stored, uses * length * size, uses * length * nonzero)
        ):
            total[place] += count
    for block in layout_of(model):
        for attention in block.attentions:
            total = totals[block.stack, block.layer, "attention"]
            product = 2 * uses * length**2 * attention.sizes.size
            total[2] += product * attention.sizes.heads
            total[3] += product * _living(model, attention)
    return Costs(length, tuple(HalfCosts(*place, *total) for place, total in totals.items()))


def half_of(kind: Kind) -> str:
    """Return the half of a layer that a kind of matrix belongs to, as in `HalfCosts`."""
    return _HALVES.get(kind, "attention")


def _stored(module: Any) -> Any:
    """Return the parameter that a layer's weight is made of, which other layers may share."""
    if parametrize.is_parametrized(module, "weight"):
        return next(module.parametrizations["weight"].parameters())
    return module.weight


def _uses(config: Any) -> int:
    """Return how many times each layer runs: ALBERT has fewer layers than it uses."""
    groups, layers = (getattr(config, name, None) for name in ("num_hidden_groups", "num_hidden_layers"))
    return max(layers // groups, 1) if isinstance(groups, int) and isinstance(layers, int) and groups else 1


def _living(model: nn.Module, attention: Attention) -> int:
    """Return the number of heads that are not empty."""
    flags = {part.kind: lines_used(model, part) for part in attention.lines if part.kind in ("O", "V")}
    return int(living_heads(attention.sizes, flags.get("O"), flags.get("V")).sum())
