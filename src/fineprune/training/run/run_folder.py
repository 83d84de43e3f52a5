"""Guard the folder of a run: check that it is free or this recipe's, lock it, clean it up."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fineprune._files import exclusive, replace_folder
from fineprune._messages import differences
from fineprune.checkpoint.model_folder import MODEL_GONE
from fineprune.errors import FinepruneError
from fineprune.training.host import sealing
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.results import read_results

CHECKPOINTS = "checkpoints"
"""In a run's folder while the run is under way."""

TEACHER_LOGITS = "teacher_logits"
"""The teacher's answers, in a run's folder while the run is under way."""

DENSE = "dense"
"""The run of the dense stage, in the folder of a run of two stages."""

PRUNED = "pruned"
"""The run of the stages before `refine`, in the folder of a run that has it."""

LOCK = ".lock"
"""The lock that the running process holds, in a run's folder while the run is under way."""

_FILES = ("recipe.yaml", "metrics.jsonl", "weights.npz", "results.json")  # written beside their place first
_log = logging.getLogger("fineprune")


def claim(out: Path, recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    """Check that `out` is free or this recipe's; return the results of a finished run, else None."""
    if not os.path.isdir(out):
        if os.path.exists(out):
            raise FinepruneError(f"{out}: is a file; name a folder for the run with --out")
        return None
    if not (out / "recipe.yaml").is_file():
        names = {path.name for path in out.iterdir()} - {CHECKPOINTS, LOCK}
        if all(name.startswith(".recipe.yaml.") for name in names):
            return None  # empty, or of a run that was killed before it began
        raise FinepruneError(f"{out}: not empty, and not a run; name another folder with --out")
    if not resume:
        raise FinepruneError(f"{out}: holds another run; continue it with --resume, or name another --out")
    existing = Recipe.load(out / "recipe.yaml")
    if existing != recipe:
        differing = "; ".join(differences(existing.to_dict(), recipe.to_dict()))
        raise FinepruneError(f"{out}: holds a run of another recipe ({differing}); name another --out")
    try:
        results = read_results(out / "results.json")
    except FileNotFoundError:
        return None
    if not os.path.isdir(out / "model"):
        raise FinepruneError(f"{out}: no model in it; {MODEL_GONE}")
    return results


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock the run's folder against other processes; remove it afterwards if it is empty."""
    with exclusive(out / LOCK, f"{out}: a run is under way there; wait for it, or name another --out"):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (out / LOCK).unlink()
            for folder in (out / CHECKPOINTS, out):  # the Trainer creates the first before pruning is checked
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only if it is empty


def write_model(model: Any, tokenizer: Any, place: Path) -> None:
    """Write an ordinary model folder with its tokenizer, whole or not at all."""
    beside = place.with_name(f".{place.name}")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    replace_folder(beside, place)


def tidy(out: Path) -> None:
    """Remove what a finished run no longer needs, and the temporary files of a kill during a write."""
    for spent in _spent(out):
        shutil.rmtree(spent, ignore_errors=True)
        with contextlib.suppress(OSError):
            spent.unlink()  # a file


def tidy_later(out: Path) -> None:
    """Do the work of `tidy` for a run that was killed just before it, unless a process holds the folder."""
    if _spent(out) or (out / LOCK).exists():
        with contextlib.suppress(FinepruneError, OSError), locked(out):
            tidy(out)


def _spent(out: Path) -> list[Path]:
    halves = [half for name in _FILES for half in out.glob(f".{name}.*.tmp")]
    return [path for path in (out / CHECKPOINTS, out / TEACHER_LOGITS, *halves) if path.exists()]


def resumable(folder: Path) -> Path | None:
    checkpoint, complaints = sealing.newest_whole(folder)
    for complaint in complaints:
        _log.warning("%s", complaint)
    if checkpoint is None and complaints:
        raise FinepruneError(
            f"{folder}: no whole checkpoint is left; delete the run's folder and start anew ({complaints[0]})"
        )
    return checkpoint
