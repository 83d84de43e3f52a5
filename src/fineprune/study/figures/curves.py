"""Draw score against density: methods without and with a teacher, and local against global selection."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fineprune.config import METHODS
from fineprune.study.figures import chosen_runs
from fineprune.study.figures.curve_panels import Line, Panel, Point, beside, draw_panel, legend_entries
from fineprune.study.figures.style import (
    Figure,
    legend,
    listed,
    panels,
    percent,
    short,
)
from fineprune.study.grid import DENSE
from fineprune.study.grouping import Group, dense_of, natural
from fineprune.study.study_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_HEADER = (
    *("task", "line", "method", "scope", "distillation", "density", "reached"),
    *("metric", "mean", "deviation", "seeds"),
)
_TAUGHT = ", with a teacher"


def score_by_density(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of the methods without a teacher."""
    return _methods(runs, False)


def score_by_density_distilled(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of the methods with a teacher, and with thin lines without one."""
    return _methods(runs, True)


def scopes(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of local against global selection, of the methods that were run with both."""
    found = chosen_runs.measured(runs)
    made = []
    for (task, distilled), members in _by_panel(found.groups).items():
        both = [
            method
            for method in METHODS
            if {group.cell.selection for group in members if group.cell.method == method}
            == {"local", "global"}
        ]
        if both:
            made.append(
                _panel(
                    task,
                    distilled,
                    found.groups,
                    [(group, _scoped(group), True) for group in members if group.cell.method in both],
                )
            )
    if not made:
        return "no method was run with both local and global selection"
    about = (
        "Score against density with local selection (each matrix keeps the same share; solid) and global "
        "selection (one ranking over all matrices; dashed, hollow)."
    )
    return _figure("scopes", "Local against global selection", about, made, runs, found.notes)


def _methods(runs: Sequence[RunFolder], distilled: bool) -> Figure | str:
    found = chosen_runs.measured(runs)
    by_panel = _by_panel(found.groups)
    made = []
    for task, taught in by_panel:
        if taught != distilled:
            continue
        main = [(group, label, True) for group, label in _own_scope(by_panel[task, distilled])]
        labels = {label for _, label, _ in main}
        plain = _own_scope(by_panel.get((task, False), [])) if distilled else []
        thin = [(group, label, False) for group, label in plain if label in labels]
        made.append(_panel(task, distilled, found.groups, [*main, *thin]))
    if not made:
        return f"no pruned run {'with' if distilled else 'without'} a teacher is finished"
    if distilled:
        about = "Score against density with a teacher; thin, the same method without one."
        return _figure(
            "score-by-density-distilled",
            "Score by density, with distillation",
            about,
            made,
            runs,
            found.notes,
        )
    about = "Score against the density that was reached, a line for each method."
    return _figure("score-by-density", "Score by density", about, made, runs, found.notes)


def _by_panel(groups: Iterable[Group]) -> dict[tuple[str, bool], list[Group]]:
    """Return the pruned groups by task and teacher."""
    panels: dict[tuple[str, bool], list[Group]] = {}
    for group in groups:
        if group.cell.method != DENSE:
            panels.setdefault((group.cell.task, group.cell.distillation), []).append(group)
    return panels


def _own_scope(groups: Sequence[Group]) -> list[tuple[Group, str]]:
    """Return groups with labels: each method with its own scope, or with the other if only that was run."""
    default = {group.cell.method for group in groups if group.cell.scope is None}
    return [
        (group, group.label)
        for group in groups
        if group.cell.scope is None or group.cell.method not in default
    ]


def _scoped(group: Group) -> str:
    cell = group.cell
    return ", ".join(filter(None, (cell.method, cell.structure, cell.selection, cell.variant)))


def _numbered(lines: Sequence[Line]) -> list[Line]:
    """Number the lines of one method and scope by their labels: the other settings differ."""
    numbers: dict[str, int] = {}
    counts = Counter[tuple[str, str | None]]()
    for line in sorted(lines, key=lambda line: natural(line.label)):
        if line.label not in numbers:
            numbers[line.label] = counts[line.method, line.scope]
            counts[line.method, line.scope] += 1
    return [line._replace(number=numbers[line.label]) for line in lines]


def _panel(
    task: str, distilled: bool, every: Iterable[Group], shown: Sequence[tuple[Group, str, bool]]
) -> Panel:
    metric = next((group.metric for group, *_ in shown if group.metric), "score")
    dense = dense_of(shown[0][0], every) if shown else None
    lines: dict[tuple[str, bool], Line] = {}
    for group, label, main in shown:
        mean, reached = group.mean(metric), group.kept
        if mean is None or reached is None or not 0 < reached <= 1:
            continue
        line = lines.setdefault((label, main), Line(group.cell.method, group.cell.selection, label, main, []))
        line.points.append(Point(group, reached, mean, group.deviation(metric)))
    for line in lines.values():
        line.points.sort(key=lambda point: point.density)
    level = None if dense is None else dense.mean(metric)
    title = short(task) + (_TAUGHT if distilled else "")
    told = "" if dense is None or dense.cell.variant is None else dense.label
    return Panel(task, title, distilled, metric, _numbered(list(lines.values())), level, told)


def _figure(
    name: str, title: str, about: str, made: list[Panel], runs: Sequence[RunFolder], notes: list[str]
) -> Figure | str:
    made = [panel for panel in made if any(line.main for line in panel.lines)]
    if not made:
        return "no run has a density and a score that can be drawn"
    data = [row for panel in made for row in _rows(panel)]
    paper = any(beside(panel) for panel in made)

    def draw() -> "Canvas":
        canvas, axes = panels(len(made), height=2.7)
        for axis, panel in zip(axes, made, strict=True):
            draw_panel(axis, panel, dashed_global=name == "scopes")
        legend(canvas, legend_entries(made, name == "scopes", paper))
        return canvas

    parts = [about, _seeds(made), _dense(made), _constant(made), _unfinished(runs), *notes]
    if any(panel.dense is not None for panel in made):
        parts.insert(1, "The level of the dense model is a line, 95 % of it dashed.")
    lacking = [panel.task for panel in made if panel.dense is None]
    if lacking:
        parts.append(f"No dense run is finished: {listed(lacking)}.")
    if paper:
        parts.append(
            "Dotted and hollow: the paper authors' own runs of BERT-base on the full data, one seed each."
        )
    return Figure(name, title, " ".join(filter(None, parts)), _HEADER, data, draw, _sentence(made))


def _sentence(made: Sequence[Panel]) -> str:
    """Return the scores as text where no panel has more than one density; empty where there is a curve."""
    texts = []
    for panel in made:
        points = [(line, point) for line in panel.lines if line.main for point in line.points]
        asked = {percent(point.group.cell.density or point.density) for _, point in points}
        if len(asked) > 1:
            return ""
        scores = [f"{line.label} {point.mean:.1f}" for line, point in points]
        scores += [] if panel.dense is None else [f"dense {panel.dense:.1f}"]
        metric = panel.metric.replace("_", " ")
        texts.append(f"{panel.title} at {asked.pop()}, {metric} in percent: {'; '.join(scores)}.")
    return " ".join([*texts, "One density makes no curve."])


def _rows(panel: Panel) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    if panel.dense is not None:
        rows.append(
            (panel.task, "dense", DENSE, None, False, 1.0, 1.0, panel.metric, panel.dense, None, None)
        )
    for line in panel.lines:
        for group, reached, mean, deviation in line.points:
            cell = group.cell
            settings = (
                panel.task,
                "measured",
                line.method,
                line.scope,
                cell.distillation,
                cell.density,
                reached,
            )
            seeds = len(group.values(panel.metric))
            rows.append((*settings, panel.metric, mean, deviation, seeds))
    for line, points in beside(panel):
        theirs = (panel.task, "paper", line.method, line.scope, panel.distilled, None)
        rows += [(*theirs, density, panel.metric, score, None, 1) for density, score in points]
    return rows


def _seeds(made: Sequence[Panel]) -> str:
    """Return a sentence on the number of seeds, and on lines that have too few of them for a band."""
    counts, few = [], []
    for panel in made:
        for line in panel.lines:
            if line.main:
                seeds = [(point, len(point.group.values(panel.metric))) for point in line.points]
                counts += [count for _, count in seeds]
                single = [
                    percent(point.group.cell.density or point.density) for point, count in seeds if count < 2
                ]
                if single:
                    where = "" if len(single) == len(seeds) else f" at {' and '.join(single)}"
                    few.append(f"{panel.title}: {line.label}{where}")
    if max(counts) < 2:
        return "One seed each: no band."
    numbers = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(max(counts))
    sentence = f"Mean over {numbers} seeds, with a band of one standard deviation to each side."
    return f"{sentence} One seed only, hence no band: {listed(few, between='; ')}." if few else sentence


def _dense(made: Sequence[Panel]) -> str:
    """Return a sentence on the dense runs of the levels, where their settings differ from others."""
    texts = [f"{panel.task}: {panel.dense_label}" for panel in made if panel.dense_label]
    return f"The dense level is that of {listed(dict.fromkeys(texts))}." if texts else ""


def _constant(made: Sequence[Panel]) -> str:
    """Return a sentence on points of runs that learned nothing."""
    points = [
        f"{panel.title}: {line.label} at {percent(point.group.cell.density or point.density)}"
        for panel in made
        for line in panel.lines
        for point in line.points
        if not point.group.learned
    ]
    return f"Learned nothing, one answer for all examples: {listed(points, between='; ')}." if points else ""


def _unfinished(runs: Sequence[RunFolder]) -> str:
    names = [run.name for run in runs if run.results is None]
    return f"Not finished, and not shown: {listed(names)}." if names else ""
