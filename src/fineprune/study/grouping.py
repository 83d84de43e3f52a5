"""Group the runs of a study: a row for each run, a group for the seeds of one cell."""

import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from fineprune.config import METHODS
from fineprune.study.grid import DENSE, Cell

_ORDER = (DENSE, *METHODS)


class Row(NamedTuple):
    """A run, and the content of its `results.json`; None: not finished."""

    cell: Cell
    results: dict[str, Any] | None
    layers: tuple[float, ...] = ()
    """The density of each layer, by `by_layer`."""


class Group(NamedTuple):
    """The runs that differ only by the seed."""

    cell: Cell
    """The cell of the first run, with its seed."""

    rows: list[Row]

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The results of the finished runs."""
        return [row.results for row in self.rows if row.results is not None]

    def values(self, metric: str) -> list[float]:
        """Return a metric of each run that has it, in percent."""
        scores = [results["scores"].get(metric) for results in self.finished]
        return [100 * score for score in scores if score is not None]

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over the finished seeds, in percent."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Return the standard deviation over seeds (of a sample), in percent; None for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def metric(self) -> str | None:
        """The main metric of the task."""
        return str(self.finished[0]["metric"]) if self.finished else None

    @property
    def kept(self) -> float | None:
        """The mean of the densities that were reached."""
        reached = [results["density"] for results in self.finished]
        return statistics.fmean(reached) if reached else None

    @property
    def label(self) -> str:
        """The method, and its scope if that is not the default of the method."""
        scope = self.cell.scope
        return self.cell.method if scope is None else f"{self.cell.method}, {scope}"


def groups(rows: Iterable[Row]) -> list[Group]:
    """Return the rows grouped by cell without the seed, in the order of the tables."""
    by_cell: dict[Cell, list[Row]] = {}
    for row in sorted(rows, key=lambda row: place(row.cell)):
        by_cell.setdefault(replace(row.cell, seed=0), []).append(row)
    return [Group(members[0].cell, members) for members in by_cell.values()]


def dense_of(group: Group, among: Iterable[Group]) -> Group | None:
    """Return the dense runs of the same task, None if there are none."""
    same = (one for one in among if one.cell.method == DENSE and not one.cell.distillation)
    return next((one for one in same if one.cell.task == group.cell.task), None)


def share(group: Group, among: Iterable[Group]) -> float | None:
    """Return the mean as a share of the dense mean, in the main metric; None if one is unknown."""
    dense = dense_of(group, among)
    if dense is None or group.metric is None or dense.metric is None:
        return None
    mean, dense_mean = group.mean(group.metric), dense.mean(group.metric)
    return mean / dense_mean if mean is not None and dense_mean else None


def place(cell: Cell) -> tuple[Any, ...]:
    """Return the sort key of the tables: task, without a teacher first, dense first, then by density."""
    density = 2.0 if cell.density is None else cell.density
    return cell.task, cell.distillation, -density, _ORDER.index(cell.method), cell.scope or "", cell.seed
