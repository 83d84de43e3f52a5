"""What the runs of a study measured, from their folders alone.

In a notebook, the rows of a folder show themselves as the study's tables:

    from fineprune.study.rows import collect
    collect("runs/small")
"""

import json
import logging
import statistics
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._messages import one_line
from fineprune.config import METHODS, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.anatomy import place_of
from fineprune.study.grid import DENSE, Cell, cell_of
from fineprune.training.run.mask_snapshot import Record, counts_by

_log = logging.getLogger("fineprune")
_ORDER = (DENSE, *METHODS)


class Row(NamedTuple):
    """A run, and what its `results.json` holds; None: not finished."""

    cell: Cell
    results: dict[str, Any] | None
    layers: tuple[float, ...] = ()
    """The density of each layer, by `by_layer`."""


class Group(NamedTuple):
    """The runs that differ by nothing but the seed."""

    cell: Cell
    """With the seed of the first."""

    rows: list[Row]

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The results that there are."""
        return [row.results for row in self.rows if row.results is not None]

    def values(self, metric: str) -> list[float]:
        """A metric in percent, of each run that has it."""
        scores = [results["scores"].get(metric) for results in self.finished]
        return [100 * score for score in scores if score is not None]

    def mean(self, metric: str) -> float | None:
        """The mean over the finished seeds, in percent."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """The standard deviation over seeds (of a sample); None for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def metric(self) -> str | None:
        """The main metric of the task."""
        return str(self.finished[0]["metric"]) if self.finished else None

    @property
    def kept(self) -> float | None:
        """The mean density that was reached."""
        reached = [results["density"] for results in self.finished]
        return statistics.fmean(reached) if reached else None

    @property
    def label(self) -> str:
        """The method, and its scope where that is not its own."""
        scope = self.cell.scope
        return self.cell.method if scope is None else f"{self.cell.method}, {scope}"


class Rows(list[Row]):
    """A list of runs that a notebook shows as the tables of the study."""

    def _repr_html_(self) -> str:
        from fineprune.study.tables import tables  # which is made from rows

        return "\n".join(table._repr_html_() for table in tables(self)) or "<p>no runs</p>"


def collect(out: str | Path, planned: Iterable[Cell] = ()) -> Rows:
    """The runs that are in a folder, and of those `planned` the ones that are not.

    Folders whose name does not say what their recipe is are left out, with a warning. Raises
    `FinepruneError` for results that cannot be read, and for seeds that differ by more than the seed.
    """
    out, found = Path(out), {cell: Row(cell, None) for cell in planned}
    for path in sorted(out.glob("*/results.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            cell = cell_of(path.parent.name, results["recipe"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FinepruneError(
                f"{path}: not the results of a run ({one_line(error)}); delete it"
            ) from error
        if cell is None:
            _log.warning("%s: left out, its name does not say what its recipe is", path.parent)
            continue
        found[cell] = Row(cell, results, by_layer(_record(path.parent)))
    rows = Rows(sorted(found.values(), key=lambda row: _place(row.cell)))
    for group in groups(rows):
        _check_alike(group, out)
    return rows


def by_layer(record: Record | None) -> tuple[float, ...]:
    """The densities of a model's layers, in their order; of several stacks (encoder, decoder) the first.

    Empty where the run left no record, or the names of its matrices have no number of a layer.
    """
    counts = counts_by(record.matrices if record else (), lambda name: place_of(name)[:2])
    layers = {place: kept / total for place, (kept, total) in counts.items() if place[1] is not None}
    stack = next((stack for stack, _ in layers), None)
    return tuple(layers[place] for place in sorted(layers) if place[0] == stack)


def groups(rows: Iterable[Row]) -> list[Group]:
    """The rows by cell without the seed, in the order of the tables."""
    by_cell: dict[Cell, list[Row]] = {}
    for row in sorted(rows, key=lambda row: _place(row.cell)):
        by_cell.setdefault(replace(row.cell, seed=0), []).append(row)
    return [Group(members[0].cell, members) for members in by_cell.values()]


def dense_of(group: Group, among: Iterable[Group]) -> Group | None:
    """The dense runs of the same task."""
    same = (one for one in among if one.cell.method == DENSE and not one.cell.distillation)
    return next((one for one in same if one.cell.task == group.cell.task), None)


def share(group: Group, among: Iterable[Group]) -> float | None:
    """What the mean is of the dense mean, in the main metric."""
    dense = dense_of(group, among)
    if dense is None or group.metric is None or dense.metric is None:
        return None
    own, whole = group.mean(group.metric), dense.mean(group.metric)
    return own / whole if own is not None and whole else None


def as_dicts(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The finished runs as plain values, for JSON."""
    taken = ("metric", "score", "scores", "density", "kept", "total", "steps", "seconds", "examples")
    return [
        {"run": row.cell.name}
        | asdict(row.cell)
        | {"measured": {name: row.results.get(name) for name in taken}}
        | {"environment": row.results.get("environment")}
        for row in rows
        if row.results is not None
    ]


def _record(folder: Path) -> Record | None:
    try:
        return Record.load(folder)
    except FinepruneError as error:
        _log.warning("%s", error)
        return None


def _place(cell: Cell) -> tuple[Any, ...]:
    """Where a run stands in the tables: without a teacher first, dense first, then by density."""
    density = 2.0 if cell.density is None else cell.density
    return cell.task, cell.distillation, -density, _ORDER.index(cell.method), cell.scope or "", cell.seed


def _check_alike(group: Group, out: Path) -> None:
    """The same recipe but for the seed, and for which of the dense runs teaches."""
    first: tuple[Cell, dict[str, Any]] | None = None
    for row in group.rows:
        if row.results is None:
            continue
        recipe = row.results["recipe"]
        alike = recipe | {"training": recipe["training"] | {"seed": None}}
        if recipe["distillation"] is not None:
            alike["distillation"] = recipe["distillation"] | {"teacher": None}
        if recipe["pruning"] is not None:  # a field that is younger than a run had its default there
            alike["pruning"] = PruningConfig().to_dict() | recipe["pruning"]
        if first is not None and alike != first[1]:
            names = ", ".join(section for section in alike if alike[section] != first[1].get(section))
            raise FinepruneError(
                f"{out / first[0].name} and {out / row.cell.name}: seeds of one cell that differ in {names}; "
                "delete the one that is of an older recipe"
            )
        first = first or (row.cell, alike)
