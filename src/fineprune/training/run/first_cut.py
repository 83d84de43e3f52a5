"""Cut a pre-trained model before it is trained, so that all of the training is of the smaller one.

Filters of least norm go before any fine-tuning, as in compute-optimal transfer (2023); the hidden size stays.
"""

from typing import TYPE_CHECKING, Any

from fineprune.config import METHODS, PruningConfig
from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from torch import nn

    from fineprune.pruning.shrink import Shrunk


def cut_config(structure: Any, density: float) -> PruningConfig:
    """Return the settings of a cut by magnitude, of equal shares in all layers.

    Raises:
        FinepruneError: a structure or a density that cannot be.
    """
    by_size = next(name for name, traits in METHODS.items() if traits.order == 0)
    return PruningConfig(by_size, density, scope="local", structure=structure, warmup=0, cooldown=0)


def cut(model: "nn.Module", structure: Any, density: float) -> "Shrunk":
    """Remove the heads or neurons of least size, in place, and return what remains.

    Raises:
        FinepruneError: the structure does not fit the model, or its units cannot be removed from it.
    """
    from fineprune.pruning.finalizing import finalize  # recipes are read without torch
    from fineprune.pruning.preparing import prepare
    from fineprune.pruning.shrink import shrink

    pruner = prepare(model, cut_config(structure, density), total_steps=1)
    pruner.step()
    shrunk = shrink(finalize(model))
    if shrunk.refused:
        raise FinepruneError(
            f"model.structure={structure!r}: {shrunk.refused[0]}; cut another part, or leave structure out"
        )
    return shrunk
