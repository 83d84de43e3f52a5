"""Draw figures of runs from only their folders: those of the paper, and more.

Each function of these modules takes runs and returns a `Figure`, or a line that says why there is none.
"""

from collections.abc import Callable, Sequence
from functools import partial

from fineprune.study.figures.curves import scopes, score_by_density, score_by_density_distilled
from fineprune.study.figures.layers import density_by_layer, empty
from fineprune.study.figures.pareto import pareto
from fineprune.study.figures.steps import mask_changes, steps
from fineprune.study.figures.style import Figure
from fineprune.study.figures.weights import remaining_weights, weights
from fineprune.study.study_folder import RunFolder

__all__ = ["Figure", "drawings"]

_Maker = Callable[[Sequence[RunFolder]], Figure | str]
_OF_A_STUDY: dict[str, _Maker] = {
    "score by density": score_by_density,
    "score by density, with distillation": score_by_density_distilled,
    "local against global selection": scopes,
    "score against size and speed": pareto,
}
_OF_A_RUN: dict[str, _Maker] = {
    "weights before and after": weights,
    "the remaining weights": remaining_weights,
    "density by layer": density_by_layer,
    "over the steps": steps,
    "mask changes": mask_changes,
    "empty heads and neurons": empty,
}


def drawings(runs: Sequence[RunFolder]) -> list[tuple[str, Callable[[], Figure | str]]]:
    """Return the name and function of each figure of `runs`; for a single run, without comparisons."""
    makers = _OF_A_RUN if len(runs) == 1 else _OF_A_STUDY | _OF_A_RUN
    return [(what, partial(make, runs)) for what, make in makers.items()]
