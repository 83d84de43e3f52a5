"""Several densities from one run: the run is a chain, and a model is finished at each density.

Each density begins with the finished model of the one before, zeros in place, and has a cycle of the
learning rates, a ramp of the density and a cool-down of its own. So every model of the family is the end of
an ordinary run, which resumes as any other, and no cool-down is lost to the densities that follow. A branch
from the state before the cool-down would spend its steps on one model alone.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fineprune._validation import is_number, shown
from fineprune.config import METHODS, PruningConfig, Traits
from fineprune.errors import FinepruneError
from fineprune.pruning.schedule import Schedule
from fineprune.structure import parts_of
from fineprune.training.run.results import read_results
from fineprune.training.run.training_config import TrainingConfig

WHOLE = "whole"
"""The model of an earlier density before it was made smaller, in the folder of its run, until the next
density is done."""

DENSITY = "density-"
"""What the folder of an earlier density begins with, in that of the run."""

_EXAMPLE = "such as [0.5, 0.25, 0.1]"


def split(pruning: Any, earlier: Any) -> tuple[Any, tuple[float, ...]]:
    """Return the section `pruning` with its last density alone, and the densities before it.

    Args:
        pruning: The section; its density may be a list.
        earlier: `earlier_densities` of the recipe, which says the same in another form.
    """
    given = pruning.get("density") if isinstance(pruning, Mapping) else None
    if not isinstance(given, (list, tuple)):
        return pruning, _checked("earlier_densities", earlier or ())
    if earlier:
        raise FinepruneError(
            f"pruning.density={shown(given)}: lists all densities, so leave out "
            f"earlier_densities={shown(earlier)}"
        )
    if not given:
        raise FinepruneError(f"pruning.density=[]: is empty; list densities from high to low, {_EXAMPLE}")
    *before, last = _checked("pruning.density", given)
    return {**pruning, "density": last}, tuple(before)


def _checked(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)):
        raise FinepruneError(f"{name}={shown(values)}: must be a list of densities, {_EXAMPLE}")
    for value in values:
        if not is_number(value) or not 0 < value <= 1:
            raise FinepruneError(
                f"{name}={shown(values)}: {shown(value)} is no density, a share in (0, 1]; for 10 % write 0.1"
            )
    _check_order(name, values)
    return tuple(map(float, values))


def _check_order(name: str, values: Sequence[float]) -> None:
    for higher, lower in pairwise(values):
        if not lower < higher:
            raise FinepruneError(
                f"{name}={shown(list(values))}: {lower:g} after {higher:g}; each density must be lower than "
                f"the one before, {_EXAMPLE}"
            )


def check_densities(
    earlier: Sequence[float], pruning: PruningConfig | None, training: TrainingConfig
) -> None:
    """Raise `FinepruneError` where a run cannot reach several densities one after another.

    Args:
        earlier: The densities before that of `pruning`.
        pruning: The section.
        training: The section, whose steps are those of all densities.
    """
    if pruning is None:
        raise FinepruneError("earlier_densities: there is no section pruning; leave them out")
    _check_order("pruning.density", [*earlier, pruning.density])
    if not _ranks_at_start(pruning.traits):
        able = ", ".join(name for name, traits in METHODS.items() if _ranks_at_start(traits))
        raise FinepruneError(
            f"pruning.method={pruning.method!r}: cannot go on from a model that is pruned already; for "
            f"several densities take one of {able}, or give one density"
        )
    if pruning.traits.learns_scores and (pruning.score_init == "zero" or not pruning.traits.trains_weights):
        raise FinepruneError(
            f"pruning.method={pruning.method!r}: its scores start at 0 and do not know what is gone; "
            "take a method whose scores start from the weights (score_init: magnitude), or give one density"
        )
    if not pruning.controlled:
        raise FinepruneError(
            f"pruning.penalty={pruning.penalty!r}: decides the density by itself, so there cannot be "
            "several; leave penalty out"
        )
    for part, unit in parts_of(pruning.structure).items():
        if unit.density is not None:
            raise FinepruneError(
                f"pruning.structure: {part} has a density of its own ({unit.density:g}), which several "
                "densities do not change; leave it out"
            )
    if training.steps is not None:
        _check_steps(training.steps, pruning, len(earlier) + 1)


def _ranks_at_start(traits: Traits) -> bool:
    """Return whether a method ranks zeros last before its first step: by the size of the weights."""
    return traits.learns_scores or traits.order == 0 or traits.starts_by_size


def _check_steps(steps: int, pruning: PruningConfig, count: int) -> None:
    shortest = steps // count
    try:
        Schedule.plan(shortest, 0, pruning.cooldown)
    except FinepruneError as error:
        raise FinepruneError(
            f"training.steps={steps}: {shortest} for each of {count} densities, too few for "
            f"pruning.cooldown={pruning.cooldown!r} and a cut before it; give more"
        ) from error


def length_before(training: Mapping[str, Any], earlier: int) -> dict[str, Any]:
    """Return the steps or epochs of the densities before the last, all together; {} if neither is given.

    Without either, each density has as many steps as a run of one density.

    Args:
        training: The settings of `training`, of all densities.
        earlier: The number of densities before the last.
    """
    length: dict[str, Any] = {}
    if training.get("steps") is not None:
        length["steps"] = training["steps"] * earlier // (earlier + 1)
    if training.get("epochs") is not None:
        length["epochs"] = training["epochs"] * earlier / (earlier + 1)
    return length


def own_length(training: Mapping[str, Any], earlier: int) -> dict[str, Any]:
    """Return the steps or epochs of the last density alone, an equal share: the rest of `length_before`."""
    return {name: training[name] - before for name, before in length_before(training, earlier).items()}


def folder_of(density: float) -> str:
    """Return the name of the folder of an earlier density, in that of the run."""
    return f"{DENSITY}{density:g}"


def family_lines(results: Mapping[str, Any], run: Path) -> list[str]:
    """Return a line for each model of a run of several densities; none for one density.

    Args:
        results: The content of results.json.
        run: The folder of the run.
    """
    return [
        f"density {entry['density']:.1%}: {results['metric']} {entry['score']:.2%} in {run / entry['folder']}"
        for entry in results.get("densities") or ()
    ]


def family(densities: Sequence[float], run: Path, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what results.json says of the models of a run: density, score, and folder inside the run's.

    Args:
        densities: All of them, from high to low.
        run: The folder of the run, which has those of the earlier densities.
        results: The results of the last one.
    """
    folders = [folder_of(density) for density in densities[:-1]]
    every = [*(read_results(run / folder / "results.json") for folder in folders), results]
    return [
        {"density": density, "score": content["score"], "folder": folder}
        for density, content, folder in zip(densities, every, [*folders, "."], strict=True)
    ]
