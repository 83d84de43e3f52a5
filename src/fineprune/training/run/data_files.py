"""Find the data of a run again: a recipe names files relative to the folder that the run was started in."""

import hashlib
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fineprune.errors import FinepruneError
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.results import read_results

ORIGIN = "origin"
"""The field of results.json."""


def place_of(recipe: Recipe) -> dict[str, Any]:
    """Return what finds the data again: the current folder, and a digest of the file that is scored on.

    The digest is None for data of the hub.
    """
    file = _scored_on(recipe)
    return {"folder": os.getcwd(), "validation": None if file is None else digest_of(Path(file))}


def located(recipe: Recipe, run: Path) -> tuple[Recipe, str | None]:
    """Return a run's recipe with its files where they are, and a line to say if these may be others.

    A file is the run's if its content is. Where no file has the content, the one in the folder that the run
    was started in is taken before the one in the current folder.
    """
    origin, file = _read(run), _scored_on(recipe)
    if file is None or origin is None:
        return recipe, None
    folder = Path(origin["folder"])
    here, there = digest_of(Path(file)), digest_of(folder / Path(file).expanduser())
    if here == origin["validation"] or there is None:
        changed = here is not None and here != origin["validation"]
        found, place = recipe, Path(file).absolute()
    else:
        changed = there != origin["validation"]
        found, place = _under(recipe, folder), folder / file
    note = f"{place}: has another content than when {run} was trained" if changed else None
    return found, note


def load_recipe(run: Path) -> tuple[Recipe, str | None]:
    """Return the recipe of a run's folder, as `located`."""
    return located(Recipe.load(run / "recipe.yaml"), run)


def _scored_on(recipe: Recipe) -> str | None:
    """Return the file of the validation data, which may be held out of the training data; None on the hub."""
    task = recipe.task
    return None if task.hub is not None else task.validation or task.train


def _read(run: Path) -> dict[str, Any] | None:
    """Return what a run's results say of its origin; None for those of an older version."""
    try:
        origin = read_results(run / "results.json").get(ORIGIN)
    except (OSError, FinepruneError):
        return None
    right = isinstance(origin, dict) and isinstance(origin.get("folder"), str) and origin.get("validation")
    return origin if right else None


def _under(recipe: Recipe, folder: Path) -> Recipe:
    """Return a recipe with its relative files in a folder, and its teacher if that is there."""
    recipe = replace(recipe, task=recipe.task.under(folder))
    taught = recipe.distillation
    if taught is None or not isinstance(taught.teacher, str) or not (folder / taught.teacher).is_dir():
        return recipe
    return replace(recipe, distillation=replace(taught, teacher=str(folder / taught.teacher)))


def digest_of(path: Path) -> str | None:
    """Return a digest of a file's content; None if it cannot be read."""
    try:
        known = os.stat(path := path.expanduser().absolute())
        return _digest(path, known.st_size, known.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=64)  # all runs of a study have one file
def _digest(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
