"""Find the dense run that the run of a pruned model is compared with."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fineprune.training.run.results import read_results
from fineprune.training.run.run_folder import DENSE, PRUNED

_Dense = tuple[Path, Mapping[str, Any], dict[str, float]]
# What damaged results, or results of another version, raise.
_ODD = (OSError, ValueError, KeyError, TypeError, AttributeError)


def dense_scores(run: Path, results: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the scores of the dense run of the same data and model; None where there is none.

    It is the run's own dense stage, or the run that it started from, or else one in the same folder, if
    possible of the same seed.

    Args:
        run: the folder of the run.
        results: its results.json.
    """
    try:
        own, metric = results["recipe"], results["metric"]
        if own["pruning"] is None:
            return None
        model, seed = _model(own), own["training"]["seed"]
        place = Path(str(own["model"]["name"])).resolve()
        stages = (run.resolve() / DENSE, run.resolve() / PRUNED / DENSE)
        folders = [*stages, *run.resolve().parent.glob("*/"), place, place.parent]
        found = []
        for path, recipe, scores in _dense_runs(folders, metric):
            started = path in stages or (model[1] is None and place in (path, path / "model"))
            if recipe["task"] == own["task"] and (started or _model(recipe) == model):
                found.append((not started, recipe["training"]["seed"] != seed, str(path), scores))
    except _ODD:
        return None
    return min(found)[3] if found else None


def _dense_runs(folders: list[Path], metric: Any) -> Iterator[_Dense]:
    """Yield path, recipe and scores of each of the folders that is a dense run."""
    for folder in dict.fromkeys(folders):
        try:
            content = read_results(folder / "results.json")
            recipe = content["recipe"]
            dense = recipe["pruning"] is None and recipe.get("distillation") is None
            whole = "seed" in recipe["training"] and "task" in recipe and "name" in recipe["model"]
            if dense and whole and content["metric"] == metric:
                yield folder, recipe, content["scores"]
        except _ODD:
            continue  # another run's files are not what this model is about


def _model(recipe: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the model of a recipe: its name and the layers that are kept of it."""
    return recipe["model"]["name"], recipe["model"].get("layers")
