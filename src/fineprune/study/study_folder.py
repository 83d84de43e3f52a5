"""Run folders as figures and reports read them: whatever is there, and a line about what is not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fineprune._messages import one_line
from fineprune.config import METHODS, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.inference.bench import BENCH
from fineprune.study.grid import DENSE, Cell, cell_of, cell_of_recipe
from fineprune.study.task_labels import Named, data_of, labels
from fineprune.study.variants import Settings, settings_of, variants
from fineprune.training.run.densities import DENSITY
from fineprune.training.run.mask_snapshot import NAME as RECORD
from fineprune.training.run.mask_snapshot import Record
from fineprune.training.run.recipe_file import read_yaml
from fineprune.training.run.results import PeerTiming, read_results, timings_of, weight_bytes
from fineprune.training.run.run_folder import DENSE as DENSE_STAGE
from fineprune.training.run.run_folder import PRUNED
from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import check_regular, parse_json, read_json

FAILURES = "failures.jsonl"
"""In the folder of a study while runs have failed: a line for each."""

SOURCE = "study.yaml"
"""The file, in the folder of the runs, with the study that was run last."""


PAGE = "report.html"
"""The report, in the folder of a run or of a study."""


@dataclass(frozen=True)
class RunFolder:
    """One run. Missing or broken parts are None or empty, and `notes` says so."""

    path: Path
    cell: Cell
    """The settings of the run. If the folder's name does not say them, the task is named after the data, or
    after the folder above, and the rest is the recipe's. Runs that are read together have one task only if
    their recipes have the same data and model, and one cell only if nothing else differs.
    """

    recipe: dict[str, Any]
    results: dict[str, Any] | None
    """`results.json`; None: not finished."""

    lines: tuple[dict[str, Any], ...]
    """`metrics.jsonl`."""

    config: dict[str, Any]
    """`model/config.json`."""

    bench: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)
    stage_of: str = ""
    """The name of the run whose stage it is; empty: a run of its own."""

    @property
    def name(self) -> str:
        """That of the folder, however its path was given; of a stage behind that of its run."""
        own = Path(os.path.abspath(self.path)).name
        return f"{self.stage_of}/{own}" if self.stage_of else own

    @cached_property
    def timings(self) -> list[PeerTiming]:
        """The timings in `bench.json` with right answers; [] if it is of other weights than the folder's."""
        try:
            return timings_of(self.bench, weight_bytes(self.path / "model"))[0]
        except OSError:
            return []

    @cached_property
    def record(self) -> Record | None:
        """`weights.npz`, read when it is asked for; None for dense runs, or where it is missing or broken."""
        try:
            found = Record.load(self.path)
        except FinepruneError as error:
            self.notes.append(str(error))
            return None
        if found is None and self.results is not None and self.cell.method != DENSE:
            self.notes.append(
                f"no {RECORD}, which runs of an older version did not leave: no masks, no sample"
            )
        return found


def read_folder(folder: str | Path, stages: bool = False) -> list[RunFolder]:
    """Return the run that a folder is, or the runs in it, by name; [] if there are none.

    With `stages`, the dense stages of the runs in it and their earlier densities, too, behind each run.
    Raises `FinepruneError` only where there is no such folder.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise FinepruneError(f"{folder}: no such folder; name that of a run, or of a study")
    if _is_run(folder) and not _is_project(folder):
        return [_read(folder)]
    runs = [_read(path) for path in sorted(folder.iterdir()) if path.is_dir() and _is_run(path)]
    if stages:
        runs = [entry for run in runs for entry in (run, *_stages(run))]
    place = folder.resolve().name
    told = labels([Named(run.name, run.cell.task, run.recipe) for run in runs], place)
    cells = [replace(run.cell, task=task) for run, task in zip(runs, told, strict=True)]
    recipes = {run.name: run.recipe for run in runs}
    settings = [_settings(run, recipes, place) for run in runs]
    found = variants(list(zip(cells, settings, strict=True)))
    return [
        replace(run, cell=replace(cell, variant=run.name if known is None else variant))
        for run, cell, known, variant in zip(runs, cells, settings, found, strict=True)
    ]


def failures(folder: str | Path) -> dict[str, str]:
    """Return the reason of each failed run of a study, by name."""
    path, said = Path(folder) / FAILURES, dict[str, str]()
    if path.is_file():
        for line in _lines(path, []):
            if "run" in line:
                said[str(line["run"])] = str(line.get("error"))
    return said


def _settings(run: RunFolder, recipes: dict[str, dict[str, Any]], folder: str) -> Settings | None:
    """Return the settings of a run; None if its recipe does not say them."""
    try:
        return settings_of(run.recipe, recipes, folder)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() or (path / "results.json").is_file()


def _is_project(folder: Path) -> bool:
    """Return whether a folder with a recipe is no run, but has the runs of that recipe in it."""
    if (folder / "results.json").is_file():
        return False
    inside = (path for path in folder.iterdir() if path.is_dir() and _is_run(path))
    return any(
        path.name not in (DENSE_STAGE, PRUNED) and not path.name.startswith(DENSITY) for path in inside
    )


def _stages(run: RunFolder) -> Iterator[RunFolder]:
    """Yield the dense runs and the earlier densities in the folder of a run, as runs of the same task."""
    places = (run.path / DENSE_STAGE, run.path / PRUNED / DENSE_STAGE, *sorted(run.path.glob(f"{DENSITY}*")))
    for path in filter(_is_run, places):
        stage = _read(path)
        yield replace(stage, stage_of=run.name, cell=replace(stage.cell, task=run.cell.task))


def _read(path: Path) -> RunFolder:
    notes: list[str] = []
    recipe = _mapping(path / "recipe.yaml", notes) or {}
    results = None
    try:
        results = read_results(path / "results.json")
    except FileNotFoundError:
        notes.append("not finished: there is no results.json")
    except FinepruneError as error:
        notes.append(one_line(error).replace(f"{path}{os.sep}", ""))
    if results is not None:
        recipe = results["recipe"]
    lines = tuple(_lines(path / "metrics.jsonl", notes)) if (path / "metrics.jsonl").is_file() else ()
    config = _mapping(path / "model" / "config.json", notes) or {}
    bench = _mapping(path / BENCH, notes)
    return RunFolder(path, _cell(path, recipe, notes), recipe, results, lines, config, bench, notes)


def _mapping(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """Return the mapping in a file of JSON or YAML; None if it is missing, or broken, which is noted."""
    try:
        path.stat()
        value = read_yaml(path, "recipe") if path.suffix == ".yaml" else read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        notes.append(f"{path.name}: cannot be read ({one_line(error)})")
        return None
    if not isinstance(value, dict):
        notes.append(f"{path.name}: is no mapping")
        return None
    return value


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON; half a line, of a run that was killed, is noted."""
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        notes.append(f"{path.name}: cannot be read ({one_line(error)})")
        return []
    found, broken = [], 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            value = parse_json(line, path.name)
        except EngineError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            broken += 1
    if broken:
        notes.append(f"{path.name}: {broken} lines cannot be read")
    return found


def _cell(path: Path, recipe: dict[str, Any], notes: list[str]) -> Cell:
    whole = Path(os.path.abspath(path))
    above = whole.parent.name or whole.name
    try:
        cell = cell_of_recipe(recipe)
        if cell.method != DENSE:
            PruningConfig(**cell.pruning)  # its checks
            if cell.density is None and not METHODS[cell.method].holds_zeros:
                raise TypeError
        return cell_of(whole.name, recipe) or replace(cell, task=data_of(recipe) or above)
    except (KeyError, TypeError, AttributeError, FinepruneError):
        notes.append("its recipe does not say what it is a run of: taken for a dense one")
        return Cell(above, DENSE, None, None, False, 0)
