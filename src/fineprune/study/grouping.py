"""Group the runs of a study: a row for each run, a group for the seeds of one cell."""

import re
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

    def left(self, what: str) -> float | None:
        """Return the mean share of "heads", "neurons" or "flops" that remains; None where no run says it."""
        said = [results["left"] for results in self.finished if isinstance(results.get("left"), dict)]
        found = [left[what] for left in said if what in left]
        shares = [entry[0] / entry[1] if isinstance(entry, list) else entry for entry in found]
        return statistics.fmean(shares) if shares else None

    @property
    def label(self) -> str:
        """The method, its scope if that is not the method's own, and other settings that set it apart."""
        cell = self.cell
        return ", ".join(filter(None, (cell.method, cell.structure, cell.scope, cell.variant)))

    @property
    def constant(self) -> int:
        """The number of finished runs that learned nothing: each gives every example one answer."""
        return sum(results.get("constant") is True for results in self.finished)

    @property
    def learned(self) -> bool:
        """Whether a finished run learned something; others are never the best of anything."""
        return self.constant < len(self.finished)

    @property
    def remark(self) -> str:
        """A remark on runs that learned nothing; empty without any."""
        if not self.constant:
            return ""
        seeds = "" if not self.learned else f"{self.constant} of {len(self.finished)} seeds "
        return f"{seeds}learned nothing"


def groups(rows: Iterable[Row]) -> list[Group]:
    """Return the rows grouped by cell without the seed, in the order of the tables.

    A seed counts once: of runs that are equal in all settings and the seed, the first finished one.
    """
    by_cell: dict[Cell, dict[int, Row]] = {}
    for row in sorted(rows, key=lambda row: place(row.cell)):
        members = by_cell.setdefault(replace(row.cell, seed=0), {})
        known = members.get(row.cell.seed)
        if known is None or (known.results is None and row.results is not None):
            members[row.cell.seed] = row
    return [Group(next(iter(members.values())).cell, list(members.values())) for members in by_cell.values()]


def dense_of(group: Group, among: Iterable[Group]) -> Group | None:
    """Return the dense runs of the same task whose training is most like the group's; None if there are none.

    Finished ones go first.
    """
    same = [
        one
        for one in among
        if one.cell.method == DENSE and not one.cell.distillation and one.cell.task == group.cell.task
    ]
    own = _training(group)
    return min(same, key=lambda one: (not one.finished, _distance(own, _training(one))), default=None)


def dense_mean(group: Group, among: Iterable[Group]) -> float | None:
    """Return the mean of the dense runs in the group's main metric, in percent; None if it is unknown.

    The dense runs are those of the group's seeds, or all where a seed has none: some seeds lie higher.
    """
    dense = dense_of(group, among)
    if dense is None or group.metric is None:
        return None
    seeds = {row.cell.seed for row in group.rows if row.results is not None}
    same = [row for row in dense.rows if row.results is not None and row.cell.seed in seeds]
    return Group(dense.cell, same if len(same) == len(seeds) else dense.rows).mean(group.metric)


def share(group: Group, among: Iterable[Group]) -> float | None:
    """Return the mean as a share of the dense mean, in the main metric; None if one is unknown.

    A share means something only of positive scores: of a correlation below 0 there is none.
    """
    mean, dense = group.mean(group.metric or ""), dense_mean(group, among)
    return share_of(mean, dense)


def share_of(score: float | None, dense: float | None) -> float | None:
    """Return a score as a share of the dense one; None unless both are known and positive."""
    return score / dense if score is not None and dense is not None and score > 0 and dense > 0 else None


def _training(group: Group) -> dict[str, Any]:
    """Return the settings of training, without those that change no result."""
    recipes = (results.get("recipe") for results in group.finished)
    sections = (recipe.get("training") for recipe in recipes if isinstance(recipe, dict))
    first = next((section for section in sections if isinstance(section, dict)), {})
    return {key: value for key, value in first.items() if key not in ("seed", "evaluate_every")}


def _distance(one: dict[str, Any], other: dict[str, Any]) -> tuple[bool, int, float]:
    """Return how unlike two trainings are: in length, in settings; of equals the longest is first."""
    differ = [key for key in {*one, *other} if one.get(key) != other.get(key)]
    length = other.get("steps") or other.get("epochs") or 0
    return any(key in differ for key in ("steps", "epochs")), len(differ), -length


def place(cell: Cell) -> tuple[Any, ...]:
    """Return the sort key of the tables: task, without a teacher first, dense first, then by density."""
    density = 2.0 if cell.density is None else cell.density
    method = (
        *(_ORDER.index(cell.method), cell.structure or "", cell.scope or ""),
        natural(cell.variant or ""),
    )
    return cell.task, cell.distillation, -density, *method, cell.seed


def natural(text: str) -> list[tuple[float, str]]:
    """Return a sort key in which 150 steps go before 1,000 steps."""
    parts = re.split(r"(\d+)", text.replace(",", ""))
    return [(float(part), "") if part.isdigit() else (-1.0, part) for part in parts]
