"""Find the recipes that come with the package: the paper's settings, and small runs for a laptop."""

import os
from pathlib import Path

from fineprune._messages import suggestion
from fineprune.errors import FinepruneError

FOLDER = Path(__file__).resolve().parents[2] / "recipes"

SCHEMA = FOLDER / "recipe.schema.json"
"""The JSON Schema of recipes, which docs/recipe_schema.py makes."""


def packaged(folder: Path = FOLDER) -> dict[str, str]:
    """Return the names of the recipes, each with the description in its first line."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for path in sorted(folder.glob("*.yaml"))
    }


def locate(recipe: str | Path, folder: Path = FOLDER, what: str = "recipe") -> Path:
    """Return the file of a recipe: the path itself, or the package's file if a bare name is not a file.

    Args:
        recipe: A path or a bare name.
        folder: The folder of the package to search.
        what: The word for its files in the error message.

    Raises:
        FinepruneError: for a bare name that is neither; the message suggests similar names.
    """
    path = Path(recipe)
    if os.path.isfile(path) or path.suffix or path.name != str(recipe):
        return path
    within = folder / f"{path.name}.yaml"
    if os.path.isfile(within):  # unlike Path.is_file, False for a name that is too long
        return within
    names = list(packaged(folder))
    raise FinepruneError(
        f"{recipe}: no such file, and no {what} of that name; "
        f"{suggestion(path.name, names, 3)}known: {', '.join(names)}"
    )
