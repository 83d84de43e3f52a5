"""Cut the model of a run or model folder without labels, and write it as a folder of its own."""

import functools
import logging
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from fineprune._files import staged, write_json
from fineprune._padding import ensure_padding
from fineprune._text_files import read_lines
from fineprune._transformers_output import quiet
from fineprune.checkpoint.compact import check_place
from fineprune.checkpoint.provenance import Provenance
from fineprune.errors import FinepruneError
from fineprune.pruning.calibration.calibrate import K_PRUNE, KWON, calibrate
from fineprune.pruning.calibration.calibrated import Calibrated
from fineprune.pruning.shrink import Shrunk, shrink
from fineprune.tasks.batches import as_rows, fitting, longest_first, tokenizing
from fineprune.tasks.opening import open_trained
from fineprune.training.run.convert import CALIBRATION, Companions, write_plain
from fineprune.training.run.data_files import load_recipe
from fineprune.training.run.evaluate import evaluate_model
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.results import read_results

_log = logging.getLogger("fineprune")
SAMPLES = 512
_BATCH = 32
_UNITS = {"attention": "head", "feed_forward": "neuron"}
_LENGTH = 128  # tokens of a text, where no recipe says


class Calibration(NamedTuple):
    """How to cut: the settings of `fineprune calibrate`."""

    density: float = 0.5
    method: str | None = None
    samples: int = SAMPLES
    """Texts to read."""

    texts: Path | None = None
    """A file with a text a line, or two with a tab between; None: the training data of the run."""

    units: bool = False
    """Cut heads and neurons, and remove them; else single weights."""


class CalibratedFolder(NamedTuple):
    """The folder that was written, what was cut, and what it cost."""

    folder: Path
    cut: Calibrated
    shrunk: Shrunk | None
    """What was removed; None where single weights were cut."""

    scores_before: dict[str, float] | None
    """Of the run; None for a folder that is none."""

    scores: dict[str, float] | None
    metric: str | None
    train_on: str | None
    """The command that trains the model on and keeps its zeros; None for a folder that is no run."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `--json` prints."""
        cut = asdict(self.cut) | {"density": self.cut.density, "error": self.cut.error}
        return self._asdict() | {
            "folder": str(self.folder),
            "shrunk": None if self.shrunk is None else asdict(self.shrunk),
            "cut": cut | {"matrices": [matrix._asdict() for matrix in self.cut.matrices]},
        }


def calibrate_folder(folder: Path, out: Path, settings: Calibration) -> CalibratedFolder:
    """Cut the model of a folder by texts, and write it with its zeros in place, which loads anywhere.

    The scores before are those in the results of the run; after, those of the written model.

    Raises:
        FinepruneError: There is no model, or there are no texts; or as `calibrate`.
    """
    check_place(out, folder)
    if settings.samples < 1:
        raise FinepruneError(f"samples={settings.samples}: at least one text is needed; 512 are usual")
    recipe, note = load_recipe(folder) if (folder / "recipe.yaml").is_file() else (None, None)
    if note is not None:
        _log.warning("%s", note)
    if recipe is None and settings.texts is None:
        raise FinepruneError(
            f"{folder}: no run, so without training data; give texts of its task, a text a line"
        )
    if recipe is not None and not (folder / "results.json").is_file():
        raise FinepruneError(f"{folder}: the run is not finished: fineprune run … --resume")
    results = {} if recipe is None else read_results(folder / "results.json")
    with quiet():
        model, tokenizer, place = open_trained(folder, need_tokenizer=True)
        ensure_padding(model, tokenizer)
        structure = _UNITS if settings.units else "element"
        if hasattr(model, "sentence") and settings.method in (KWON, K_PRUNE):
            raise FinepruneError(
                f"method={settings.method!r}: needs logits of classes, and this model gives embeddings; "
                "use method='sparsegpt'"
            )
        batches = _batches(model, tokenizer, recipe, settings)
        cut = calibrate(model, batches, settings.density, settings.method, structure)
        shrunk = shrink(model) if settings.units else None
        after = None if recipe is None else evaluate_model(model, tokenizer, recipe, folder)
        before = results.get("scores")
        with staged(out) as staging:
            write_plain(model, Companions(tokenizer, Path(place)), staging)
            provenance = Provenance(after, before, _command(folder, out, settings, cut.method))
            write_json(staging / CALIBRATION, provenance.to_dict() | {"cut": str(cut).splitlines()})
    train_on = None if recipe is None else _train_on(folder, out, settings, recipe)
    return CalibratedFolder(out, cut, shrunk, before, after, results.get("metric"), train_on)


def _batches(
    model: Any, tokenizer: Any, recipe: Recipe | None, settings: Calibration
) -> list[dict[str, Any]]:
    """Return padded batches of texts of similar length, without labels."""
    length = fitting(_LENGTH if recipe is None else recipe.training.max_length, model, tokenizer)
    if settings.texts is not None:
        rows = _rows_of_texts(settings, tokenizer, length)
        collate: Callable[[list[Any]], Any] = functools.partial(tokenizer.pad, return_tensors="pt")
    else:
        assert recipe is not None
        data = recipe.task.load(model=model)
        every = data.train_rows(tokenizer, length)
        assert every is not None
        rows = list(every.select(_drawn(len(every), settings.samples)))
        collate = data.collator(tokenizer)
    names = set(tokenizer.model_input_names)
    batches = []
    for members in longest_first([len(row["input_ids"]) for row in rows], _BATCH):
        batch = collate([rows[index] for index in members])
        batches.append({name: batch[name] for name in batch if name in names})
    return batches


def _rows_of_texts(settings: Calibration, tokenizer: Any, length: int) -> list[dict[str, Any]]:
    lines = read_lines(settings.texts or "")
    pairs = [lines[index].split("\t") for index in _drawn(len(lines), settings.samples)]
    if len({len(pair) for pair in pairs}) > 1 or len(pairs[0]) > 2:
        raise FinepruneError(f"{settings.texts}: every line must be one text, or two with a tab between them")
    texts = [list(column) for column in zip(*pairs, strict=True)]
    with tokenizing():
        columns = tokenizer(*texts, truncation=True, max_length=length, padding=False)
    return as_rows(columns)


def _drawn(total: int, count: int) -> list[int]:
    """Return the numbers of some rows, always the same ones."""
    return sorted(random.Random(0).sample(range(total), min(count, total)))


def _command(folder: Path, out: Path, settings: Calibration, method: str) -> str:
    texts = "" if settings.texts is None else f" --texts {quote(settings.texts.name)}"
    source, target = quote(folder.resolve().name), quote(out.resolve().name)
    return (
        f"fineprune calibrate {source} --out {target} --method {method} "
        f"--density {settings.density:g} --samples {settings.samples}{texts}{' --units' * settings.units}"
    )


def _train_on(folder: Path, out: Path, settings: Calibration, recipe: Recipe) -> str:
    several = bool(recipe.earlier_densities)
    pruning = "null" if settings.units else "'{method: keep_zeros}'"
    return (
        f"fineprune run {quote(str(folder / 'recipe.yaml'))} {quote(f'model={out}')} pruning={pruning} "
        f"dense=null refine=null {'earlier_densities=null ' * several}"
        f"{quote(f'distillation={{teacher: {folder}}}')} --out {quote(f'{out}-trained')}"
    )
