"""Where the model of a folder lies."""

from pathlib import Path

from fineprune.errors import FinepruneError


def model_place(folder: Path) -> Path:
    """The model folder of a run folder (its `model/`), or the model folder itself."""
    place = folder / "model" if (folder / "model").is_dir() else folder
    if not (place / "config.json").is_file():
        unfinished = (folder / "recipe.yaml").is_file()
        hint = (
            "the run is not finished: fineprune run … --resume"
            if unfinished
            else "name a run or a model folder"
        )
        raise FinepruneError(f"{folder}: no model in it; {hint}")
    return place
