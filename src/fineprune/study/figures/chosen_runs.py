"""Choose the runs of a figure: all finished ones grouped by setting, or one run for each method."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fineprune.config import METHODS
from fineprune.study.figures.style import listed, percent, short
from fineprune.study.grid import DENSE, Cell
from fineprune.study.grouping import Group, Row, groups
from fineprune.study.study_folder import RunFolder
from fineprune.training.run.mask_snapshot import NAME as RECORD


class Chosen(NamedTuple):
    """One run for each method, in the order of the table of methods."""

    runs: list[RunFolder]
    told: str
    """A sentence: which runs, at which density, and whom it leaves out."""


class Measured(NamedTuple):
    """The finished runs with a score, by setting; the task of a cell is the panel that it is drawn in."""

    groups: list[Group]
    runs: dict[Cell, RunFolder]
    """The run of each row of the groups."""
    notes: list[str]


def measured(runs: Sequence[RunFolder]) -> Measured:
    """Group the runs that have a score in the main metric of their task.

    Of two runs that are equal in all settings, seed included, the first is taken.
    """
    found: dict[Cell, RunFolder] = {}
    twice: list[str] = []
    for run in runs:
        if run.results is None or run.results["metric"] not in run.results["scores"]:
            continue
        if run.cell in found:
            twice.append(run.name)
        found.setdefault(run.cell, run)
    notes = [f"Left out, as others are of the same setting and seed: {listed(twice)}."] if twice else []
    rows = [Row(cell, run.results) for cell, run in found.items()]
    return Measured(groups(rows), found, notes)


def one_each(
    runs: Sequence[RunFolder],
    usable: Callable[[RunFolder], bool],
    prefer_global: bool = False,
) -> Chosen | None:
    """One pruned run for each method, all of one task, model and teacher.

    Most methods go first, then the longest training, then the lowest density that they have in common; of
    seeds the first, and of scopes the method's own, or with `prefer_global` the global one. None where no
    run is usable. Runs that learned nothing go last.
    """
    settings: dict[tuple[str, bool, float], list[RunFolder]] = {}
    for run in runs:
        if run.cell.method != DENSE and run.cell.density is not None:
            key = (run.cell.task, run.cell.distillation, run.cell.density)
            settings.setdefault(key, []).append(run)

    def order(key: tuple[str, bool, float]) -> tuple[object, ...]:
        task, distilled, density = key
        finished = [run for run in settings[key] if run.results is not None]
        counts = (len({run.cell.method for run in part}) for part in (finished, settings[key]))
        longest = max((run.results["steps"] for run in finished if run.results is not None), default=0)
        return *(-count for count in counts), distilled, -longest, density, task

    def rank(run: RunFolder) -> tuple[object, ...]:
        other = run.cell.selection != "global" if prefer_global else run.cell.scope is not None
        constant = (run.results or {}).get("constant") is True
        return run.results is None, constant, other, run.cell.seed, run.name

    for key in sorted(settings, key=order):
        chosen = []
        for method in METHODS:
            members = sorted((run for run in settings[key] if run.cell.method == method), key=rank)
            found = next((run for run in members if usable(run)), None)
            if found is not None:
                chosen.append(found)
        if chosen:
            task, distilled, density = key
            taught = ", with a teacher" if distilled else ""
            where, names = f"{short(task)} at {percent(density)}{taught}", [run.name for run in chosen]
            if len(names) == 1:
                return Chosen(chosen, f"The run {names[0]} ({where}).")
            return Chosen(chosen, f"{where}, one run for each method: {', '.join(names)}.")
    return None


def has_record(run: RunFolder) -> bool:
    """Return whether a finished run has `weights.npz`, which is read only if it exists."""
    return run.results is not None and (run.path / RECORD).is_file() and run.record is not None


def without_record(runs: Iterable[RunFolder]) -> str:
    """Return the reason why nothing can be drawn from records."""
    pruned = [run for run in runs if run.cell.method != DENSE]
    if not pruned:
        return "there is no pruned run"
    if all(run.results is None for run in pruned):
        return "no pruned run is finished"
    return f"no finished run has a {RECORD} that can be read"
