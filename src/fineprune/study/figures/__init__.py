"""Figures of runs, from their folders alone: the paper's, and some beyond it.

Each function of these modules takes runs and returns a `Figure`, or says in a line why there is none.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fineprune.study.figures.curves import scopes, score_by_density, score_by_density_distilled
from fineprune.study.figures.layers import density_by_layer, empty
from fineprune.study.figures.pareto import pareto
from fineprune.study.figures.steps import mask_changes, steps
from fineprune.study.figures.style import Figure
from fineprune.study.figures.weights import remaining_weights, weights
from fineprune.study.folder import RunFolder

__all__ = ["Figure", "figures", "missing"]

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


def figures(runs: Sequence[RunFolder], folder: Path | None = None) -> list[Figure]:
    """Those that the runs have data for; of a single run, those that do not compare.

    With `folder`, they are saved there.
    """
    made = [figure for _, figure in _made(runs) if isinstance(figure, Figure)]
    if folder is not None:
        for figure in made:
            figure.save(folder)
    return made


def missing(runs: Sequence[RunFolder]) -> list[str]:
    """A line for each figure that cannot be drawn, and why."""
    return [f"{what}: {why}" for what, why in _made(runs) if isinstance(why, str)]


def _made(runs: Sequence[RunFolder]) -> Iterator[tuple[str, Figure | str]]:
    makers = _OF_A_RUN if len(runs) == 1 else _OF_A_STUDY | _OF_A_RUN
    for what, make in makers.items():
        yield what, make(runs)
