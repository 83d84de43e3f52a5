"""The last stage of a run: the pruned and shrunk model trains on, and zeros in it may be filled.

Block Pruning's "hybrid-filled" (Lagunas et al. 2021) does this: the shape stays, the score rises.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fineprune._validation import is_number, shown
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.structure import REMOVABLE, shrinks, units_of
from fineprune.training.run.training_config import TrainingConfig


@dataclass(frozen=True)
class RefineConfig(TrainingConfig):
    """The `refine` section: how the pruned model trains on, after it was made smaller."""

    fill: float | None = None
    """Replace each zero of the matrices that remain by a number around their mean, with this share of their
    standard deviation; 0.01 in Block Pruning. Zeros on both sides of a product have no gradient without.
    None: they stay, and those that have a gradient grow."""

    hold_zeros: bool = False
    """Keep the zeros that remain, for the sparse engine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fill is not None and not (is_number(self.fill) and self.fill > 0):
            raise FinepruneError(
                f"refine.fill={shown(self.fill)}: must be greater than 0, such as 0.01, or null"
            )
        if not isinstance(self.hold_zeros, bool):
            raise FinepruneError(f"refine.hold_zeros={self.hold_zeros!r}: must be true or false")
        if self.fill is not None and self.hold_zeros:
            raise FinepruneError("refine: fill and hold_zeros exclude each other; leave one out")


def check_refine(refine: RefineConfig, pruning: PruningConfig | None) -> None:
    """Raise `FinepruneError` where the pruning leaves nothing to refine in this way."""
    if pruning is None:
        raise FinepruneError(
            "refine: there is no section pruning, after which it would train on; leave it out"
        )
    units = units_of(pruning.structure)
    if refine.hold_zeros and all(unit in REMOVABLE for unit in units):
        raise FinepruneError(
            f"refine.hold_zeros=True: structure={pruning.structure!r} is removed whole, and leaves no zeros "
            "to hold; leave hold_zeros out"
        )
    if not refine.hold_zeros and not shrinks(pruning.structure):
        raise FinepruneError(
            f"refine: structure={pruning.structure!r} leaves the model its size, so its zeros are all that "
            "is saved, and training on would fill them; give refine.hold_zeros=true, or a structure of heads "
            "or neurons"
        )


def of_pruned(pruned: Mapping[str, Any], refined: Mapping[str, Any]) -> dict[str, Any]:
    """Return what results.json says of a refined run by its pruned stage.

    Args:
        pruned: The results of the stage.
        refined: The results of the refined model alone, where `dense` stands for the pruned stage.
    """
    named = ("score", "scores", "teacher_score", "density", "parameters", "steps", "seconds", "warnings")
    dense = pruned["dense"]
    share = refined["score"] / dense["score"] if dense and dense["share"] is not None else None
    return {
        "pruned": {name: pruned[name] for name in named},
        "dense": None if dense is None else dense | {"share": share},
        "left": pruned["left"],
        "shrunk": pruned["shrunk"],
        "total": pruned["total"],
        "density": refined["kept"] / pruned["total"],
        "dense_bytes": pruned["dense_bytes"],
    }
