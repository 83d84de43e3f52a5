"""The recipes that come with the package: the paper's settings, and small runs for a laptop."""

from pathlib import Path

from fineprune._messages import suggestion
from fineprune.errors import FinepruneError

FOLDER = Path(__file__).resolve().parents[2] / "recipes"


def packaged(folder: Path = FOLDER) -> dict[str, str]:
    """The names of the recipes, each with what its first line says of it."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for path in sorted(folder.glob("*.yaml"))
    }


def locate(recipe: str | Path, folder: Path = FOLDER, what: str = "recipe") -> Path:
    """The file of a recipe: itself, or the one of the package where a bare name is no file.

    Raises `FinepruneError` for a bare name that is neither, naming near ones. `what` is said of the
    files in another `folder` of the package.
    """
    path = Path(recipe)
    if path.is_file() or path.suffix or path.name != str(recipe):
        return path
    within = folder / f"{path.name}.yaml"
    if within.is_file():
        return within
    names = list(packaged(folder))
    raise FinepruneError(
        f"{recipe}: no such file, and no {what} of that name; "
        f"{suggestion(path.name, names, 3)}known: {', '.join(names)}"
    )
