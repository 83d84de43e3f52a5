"""Make the top of a study's page: the best runs at each density, and sentences on runs that need a word."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fineprune.study.grid import DENSE, Cell
from fineprune.study.grouping import Group, Row, dense_mean, groups, share
from fineprune.study.report import formatting
from fineprune.study.report.formatting import NONE, Entry, Grid, counted, listed, megabytes, numeric, percent
from fineprune.study.study_folder import RunFolder
from fineprune.training.run.results import ENGINE, PeerTiming, fastest, parameters_left, size_of

DENSITY = (
    "Density is the share of the weights in the pruned matrices that is not zero: at a density of "
    "10\N{NO-BREAK SPACE}%, 90\N{NO-BREAK SPACE}% of them are zero. Embeddings, norms, biases and the task's "
    "head are not pruned, and do not count."
)

_MEASURED = {
    "file size": "File size: float32 values, as fineprune compact writes them, and its share of the dense "
    "model's.",
    "speed": "Speed: the engine's fastest type against torch, on the same weights; the mean over the seeds "
    "that were timed alike, whose number is in brackets. Whatever the type, the score is that of float32.",
}  # columns of `best` that runs may lack

ONE_SEED = "One seed each: small differences may be noise."


def label_of(cell: Cell) -> str:
    """Return a method with the settings in which it differs from its plain form, and from other runs."""
    taught = "with a teacher" if cell.distillation else None
    return ", ".join(filter(None, (cell.method, cell.structure, cell.scope, taught, cell.variant)))


def title_of(cell: Cell) -> str:
    """Return the title of a run."""
    density = "" if cell.density is None else f", {100 * cell.density:g}\N{NO-BREAK SPACE}% density"
    return f"{cell.task}: {label_of(cell)}{density}, seed {cell.seed}"


def states(runs: Sequence[RunFolder], failed: dict[str, str]) -> dict[str, str]:
    """Return "finished", "failed" or "not finished" by run, also for runs that failed without a folder."""
    by_name = {run.name: "finished" for run in runs if run.results is not None}
    for run in runs:
        by_name.setdefault(run.name, "failed" if run.name in failed else "not finished")
    return by_name | {name: "failed" for name in failed if name not in by_name}


def best(runs: Sequence[RunFolder]) -> Grid:
    """Return a table with the dense runs of each task, and the best ones at each density by their mean.

    Runs that learned nothing are never the best; where all are such, the line says so.
    """
    every = groups([Row(run.cell, run.results) for run in runs])
    finished = [group for group in every if group.finished]
    lines = []
    for task in dict.fromkeys(group.cell.task for group in finished):
        members = [group for group in finished if group.cell.task == task]
        lines += [_line(group, every, runs) for group in members if group.cell.method == DENSE]
        pruned = [group for group in members if group.cell.method != DENSE]
        for density in sorted({group.cell.density or 1.0 for group in pruned}, reverse=True):
            same = [group for group in pruned if (group.cell.density or 1.0) == density]
            lines.append(_line(max(same, key=lambda group: (group.learned, _mean(group))), every, runs))
    texts = ("task", "asked", "best method")
    numbers = ("score", "± seeds", "lost to dense", "of dense", "density", "of all parameters")
    columns = [Entry(text) for text in texts] + [
        Entry(text, number=True) for text in (*numbers, *_MEASURED, "seeds")
    ]
    return Grid("The best at each density", columns, lines)


def one_seed(rows: Iterable[Row]) -> bool:
    """Return whether every setting has only one finished seed."""
    counts = [len(group.finished) for group in groups(rows) if group.finished]
    return bool(counts) and max(counts) == 1


def legend(left_out: Sequence[str], single: bool = False) -> list[str]:
    """Return the explanations of the columns of `best`, except those left out; `single`: one seed each."""
    lines = ["Means over seeds, in percent.", *([ONE_SEED] if single else [])]
    lines.append("Asked: the density in the recipe. Of all parameters: what remains of the whole model.")
    return lines + [line for name, line in _MEASURED.items() if name not in left_out]


def unmeasured(folder: Path, left_out: Sequence[str], timed: bool) -> list[tuple[str, str]]:
    """Return the columns that no run of a study has, each with the command that measures it.

    `timed`: the frontier, further down the page, has the speeds.
    """
    run = f"{shlex.quote(str(folder).rstrip('/'))}/RUN"
    commands = {
        "lost to dense": f"fineprune run {run}/recipe.yaml pruning=null refine=null earlier_densities=null "
        f"distillation=null --out {run}-dense",
        "file size": f"fineprune compact {run} {run}/compact",
        "speed": f"fineprune bench {run}",
    }
    if timed:
        del commands["speed"]
    return [(name, command) for name, command in commands.items() if name in left_out]


def of_group(group: Group, runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the finished runs of a group."""
    return [run for run in runs if any(run.results is results for results in group.finished)]


def _mean(group: Group) -> float:
    mean = group.mean(group.metric or "")
    return float("-inf") if mean is None or mean != mean else mean


def _asked(cell: Cell) -> str:
    """Return the requested density; a run that kept the zeros of its model had none."""
    if cell.density is not None:
        return f"{100 * cell.density:g}\N{NO-BREAK SPACE}%"
    return "dense" if cell.method == DENSE else NONE


def _line(group: Group, every: list[Group], runs: Sequence[RunFolder]) -> list[Entry]:
    cell, members = group.cell, of_group(group, runs)
    metric = group.metric or ""
    mean, deviation, whole = group.mean(metric), group.deviation(metric), share(group, every)
    dense, lost = dense_mean(group, every), None
    if mean is not None and dense is not None and cell.method != DENSE:
        lost = mean - dense
    sizes = [size for run in members if (size := size_of(run.results)) is not None]
    packed = fmean(size.packed["float32"] for size in sizes) if sizes else None
    small = fmean(size.packed["float32"] / size.dense for size in sizes) if sizes else None
    fast, timed = _alike([time for run in members if (time := fastest(run.timings)) is not None])
    left = fmean(left / every for left, every in map(parameters_left, group.finished))
    shown = formatting.signed(f"{mean:.1f} ") + metric if mean is not None else NONE
    return [
        Entry(cell.task),
        Entry(_asked(cell)),
        Entry(label_of(cell) + (f" ({group.remark})" if group.remark else "")),
        numeric(mean, shown),
        numeric(deviation, "" if deviation is None else f"{deviation:.1f}"),
        numeric(lost, "" if lost is None else formatting.signed(f"{lost:+.1f}")),
        numeric(whole, percent(whole)),
        numeric(group.kept, percent(group.kept)),
        numeric(left, percent(left)),
        numeric(packed, "" if packed is None else f"{megabytes(packed)}, {percent(small)}"),
        numeric(fast, timed),
        numeric(len(group.finished), str(len(group.finished))),
    ]


def _alike(times: list[PeerTiming]) -> tuple[float | None, str]:
    """Return the mean ratio of those timed with the most common type, input and machine, and its text."""
    if not times:
        return None, ""
    (kind, count), *_ = Counter((time.peer, time.where) for time in times).most_common()
    ratio = fmean(time.ratio for time in times if (time.peer, time.where) == kind)
    return ratio, f"{formatting.times(ratio)} {kind[0].removeprefix(ENGINE)} ({count})"


def remarks(runs: Sequence[RunFolder]) -> list[str]:
    """Return sentences on runs whose numbers need a word: nothing learned, counted once, warned."""
    if len(runs) == 1:
        return [*filter(None, [_learned_nothing(runs[0].results)])]
    lines = []
    constant = [run.name for run in runs if _learned_nothing(run.results)]
    if constant:
        lines.append(
            f"Learned nothing, as all validation examples get one answer: {listed(constant)}. "
            "Such a run is the best of nothing."
        )
    first: dict[Cell, RunFolder] = {}
    for run in runs:
        if run.results is None:
            continue
        other = first.setdefault(run.cell, run)
        if other is not run and other.results is not None:
            score, same = run.results["score"], other.results["score"]
            differs = "" if score == same else f", with {percent(score, 2)} instead of {percent(same, 2)}"
            lines.append(f"{run.name} repeats {other.name}, seed included{differs}: counted once.")
    warned = [run.name for run in runs if (run.results or {}).get("warnings")]
    if warned:
        lines.append(
            f"Warnings were given in {counted(len(warned), 'run')}, whose pages have them: {listed(warned)}."
        )
    return lines


def _learned_nothing(results: dict[str, Any] | None) -> str:
    """Return a sentence on a run that gives every example one answer; empty for others."""
    if results is None or results.get("constant") is not True:
        return ""
    majority = formatting.number_of(results.get("majority"))
    often = "" if majority is None else f", which alone is right for {percent(majority)} of them"
    return f"This run learned nothing: it gives all validation examples the same answer{often}."
