"""Collect the results of the runs of a study from only their folders.

A notebook shows the rows of a folder as the tables of the study:

    from fineprune.study.rows import collect
    collect("runs/small")
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from fineprune._messages import one_line
from fineprune.config import Distillation, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.anatomy import place_of
from fineprune.study.grid import DENSE, Cell, cell_of, cell_of_recipe
from fineprune.study.grouping import Group, Row, groups, place
from fineprune.study.tables import tables
from fineprune.study.variants import TRAINING, settings_of, variants
from fineprune.training.run.densities import DENSITY
from fineprune.training.run.mask_snapshot import Record, counts_by
from fineprune.training.run.model_section import ModelConfig
from fineprune.training.run.results import read_results

_REMARKS = ("constant", "majority", "teacher_score", "scored_in", "warnings")
"""Of the results, only where a run has them."""

_log = logging.getLogger("fineprune")


class Rows(list[Row]):
    """A list of runs that a notebook shows as the tables of the study."""

    def _repr_html_(self) -> str:
        return "\n".join(table._repr_html_() for table in tables(self)) or "<p>no runs</p>"


def collect(out: str | Path, planned: Iterable[Cell] = ()) -> Rows:
    """Return the runs in a folder, and the `planned` ones that it does not have.

    Of a run of several densities each density is a row. Folders whose results are damaged, or whose name does
    not agree with their recipe, are omitted, with a warning.

    Raises:
        FinepruneError: seeds of one cell differ by more than the seed.
    """
    out, by_cell = Path(out), {cell: Row(cell, None) for cell in planned}
    for path in sorted(out.glob("*/results.json")):
        last = _read(path, partial(cell_of, path.parent.name))
        if last is None:
            continue
        by_cell[last.cell] = last
        for row in _earlier_densities(path.parent, last.cell):
            if row.cell not in by_cell or by_cell[row.cell].results is None:
                by_cell[row.cell] = row
    for group in groups(by_cell.values()):
        _check_alike(group, out)
    rows = _told_apart(list(by_cell.values()), out.resolve().name)
    return Rows(sorted(rows, key=lambda row: place(row.cell)))


def _earlier_densities(run: Path, cell: Cell) -> Iterator[Row]:
    """Yield the finished models of a run at densities before its last, with that density in its cell."""

    def at_its_density(recipe: Mapping[str, Any]) -> Cell | None:
        found = cell_of_recipe(recipe)
        return replace(cell, density=found.density) if found.method == cell.method else None

    for path in sorted(run.glob(f"{DENSITY}*/results.json")):
        row = _read(path, at_its_density)
        if row is not None:
            yield row


def _read(path: Path, cell_of: Callable[[Mapping[str, Any]], Cell | None]) -> Row | None:
    """Return the run of a results.json, with the cell of its recipe; None and a warning if it is damaged."""
    try:
        results = read_results(path)
        cell = cell_of(results["recipe"])
    except FileNotFoundError:  # a study that is under way has just replaced it
        return None
    except FinepruneError as error:
        _log.warning("%s: left out, %s", path.parent, error)
        return None
    except (ValueError, KeyError, TypeError) as error:
        reason = one_line(error)
        _log.warning("%s: left out, %s: its recipe is of no run (%s); delete it", path.parent, path, reason)
        return None
    if cell is None:
        _log.warning("%s: left out, its name does not say what its recipe is", path.parent)
        return None
    return Row(cell, results, by_layer(_record(path.parent)))


def by_layer(record: Record | None) -> tuple[float, ...]:
    """Return the densities of a model's layers in order; of several stacks (encoder, decoder) the first.

    They are empty if the run has no record, or the names of its matrices have no number of a layer.
    """
    counts = counts_by(record.matrices if record else (), lambda name: place_of(name)[:2])
    layers = {place: kept / total for place, (kept, total) in counts.items() if place[1] is not None}
    stack = next((stack for stack, _ in layers), None)
    return tuple(layers[place] for place in sorted(layers) if place[0] == stack)


def as_dicts(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the finished runs as plain values, for JSON."""
    names = ("metric", "score", "scores", "density", "kept", "total", "steps", "seconds", "examples")
    return [
        {"run": row.cell.name}
        | asdict(row.cell)
        | {"measured": {name: row.results.get(name) for name in names}}
        | {name: row.results[name] for name in _REMARKS if name in row.results}
        | {"environment": row.results.get("environment")}
        for row in rows
        if row.results is not None
    ]


def _told_apart(rows: list[Row], folder: str) -> list[Row]:
    """Return the rows with the settings in which those of one task differ, planned ones included."""
    finished = [row for row in rows if row.results is not None]
    recipes = {row.cell.name: row.results["recipe"] for row in finished if row.results is not None}
    settings = [settings_of(recipes[row.cell.name], recipes, folder) for row in finished]
    found = variants([(row.cell, given) for row, given in zip(finished, settings, strict=True)])
    by_cell = {replace(row.cell, seed=0): text for row, text in zip(finished, found, strict=True)}
    return [
        row._replace(cell=replace(row.cell, variant=by_cell.get(replace(row.cell, seed=0), row.cell.variant)))
        for row in rows
    ]


def _record(folder: Path) -> Record | None:
    try:
        return Record.load(folder)
    except FinepruneError as error:
        _log.warning("%s", error)
        return None


def _check_alike(group: Group, out: Path) -> None:
    """Raise `FinepruneError` if recipes differ by more than the seed and its dense run, teacher or start."""
    first: tuple[Cell, dict[str, Any]] | None = None
    for row in group.rows:
        if row.results is None:
            continue
        recipe = row.results["recipe"]
        # A field that is newer than the run had its default.
        alike = (
            {"earlier_densities": []} | recipe | {"training": TRAINING | recipe["training"] | {"seed": None}}
        )
        for stage in ("dense", "refine"):
            given = recipe.get(stage)
            alike[stage] = None if given is None else TRAINING | given | {"seed": None}
        if recipe.get("distillation") is not None:
            alike["distillation"] = Distillation().to_dict() | recipe["distillation"] | {"teacher": None}
        if recipe["pruning"] is not None:
            alike["pruning"] = PruningConfig().to_dict() | recipe["pruning"]
        model = recipe["model"]
        if isinstance(model, dict):
            own = str(model["name"]).removesuffix(f"-{DENSE}-s{row.cell.seed}")
            alike["model"] = asdict(ModelConfig(own)) | model | {"name": own}
        if first is not None and alike != first[1]:
            names = ", ".join(section for section in alike if alike[section] != first[1].get(section))
            raise FinepruneError(
                f"{out / first[0].name} and {out / row.cell.name}: seeds of one cell that differ in {names}; "
                "delete the one that is of an older recipe"
            )
        first = first or (row.cell, alike)
