"""Read from single files of a run how far it came, and find its dense counterpart."""

from pathlib import Path
from typing import Any, NamedTuple

from fineprune.study.report.formatting import number_of
from fineprune.study.study_folder import RunFolder
from fineprune.study.task_labels import model_of, plain, run_of
from fineprune.study.variants import LENGTH, differences, settings_of
from fineprune.training.run.results import read_results
from fineprune.training.run.run_folder import DENSE, PRUNED


class Dense(NamedTuple):
    """The dense run that a run is compared with."""

    path: Path
    score: float
    scores: dict[str, Any]
    seed: Any
    differs: list[str]
    """What else sets it apart, as "300 steps (here 150 steps)"."""

    before: str
    """Its length, if the run began with its model; else empty."""

    constant: bool
    """Whether it gives every validation example the same answer."""


def dense_beside(run: RunFolder) -> Dense | None:
    """Return the run's own dense stage, or the dense run of the same data and model in the folder above.

    Of several that of the same length, then that whose model the run began with, then that whose training is
    most like the run's, then that of the same seed.
    """
    if run.recipe.get("dense") is not None:
        for place in (DENSE, f"{PRUNED}/{DENSE}"):
            if (stage := _stage(run.path.resolve() / place)) is not None:
                return stage
    above = run.path.resolve().parent
    every = {}
    for path in sorted(above.glob("*/results.json")):
        try:
            every[path.parent.name] = read_results(path)
        except (OSError, ValueError):
            continue  # another run's files are not what this page is about
    recipes = {name: results["recipe"] for name, results in every.items()}
    own = _kind(run.recipe, recipes, above.name)
    try:
        settings = settings_of(run.recipe, recipes, above.name)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    found = []
    for name, recipe in recipes.items():
        results = every[name]
        try:
            if recipe["pruning"] is not None or recipe.get("distillation") is not None:
                continue
            if results["metric"] == _metric(run) and _kind(recipe, recipes, above.name) == own:
                seed, theirs = _seed(recipe), settings_of(recipe, recipes, above.name)
                differs = differences(settings, theirs)
                began = run_of(_model(run.recipe), above.name) == name
                after = theirs[LENGTH].text if began else ""
                about = differs, after, results.get("constant") is True
                dense = Dense(above / name, results["score"], results["scores"], seed, *about)
                unlike = settings[LENGTH] != theirs[LENGTH], not began, len(differs)
                found.append(((*unlike, seed != _seed(run.recipe)), dense))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return min(found, key=lambda entry: entry[0])[1] if found else None


def _stage(path: Path) -> Dense | None:
    """Return the dense stage of a run of two; None where it cannot be read."""
    try:
        results = read_results(path / "results.json")
        length = settings_of(results["recipe"], {}, path.parent.name)[LENGTH].text
        seed = _seed(results["recipe"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    constant = results.get("constant") is True
    return Dense(path, results["score"], results["scores"], seed, [], length, constant)


def progress(run: RunFolder) -> str:
    """Return how far an unfinished run came, as a text."""
    steps = [line["step"] for line in run.lines if number_of(line.get("step")) is not None]
    if not steps:
        return "no step is logged"
    training = run.recipe.get("training")
    planned = number_of(training.get("steps")) if isinstance(training, dict) else None
    return f"step {max(steps):,}" + (f" of {planned:,}" if planned else "")


def _kind(recipe: dict[str, Any], recipes: dict[str, dict[str, Any]], folder: str) -> tuple[str, str]:
    """Return the data and the model of a run."""
    return plain(recipe.get("task")), plain(model_of(recipe, recipes, folder))


def _model(recipe: dict[str, Any]) -> Any:
    section = recipe.get("model")
    return section.get("name") if isinstance(section, dict) else section


def _metric(run: RunFolder) -> Any:
    return None if run.results is None else run.results["metric"]


def _seed(recipe: dict[str, Any]) -> Any:
    return recipe["training"]["seed"]
