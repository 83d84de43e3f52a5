"""Draw scores against the size of the file and the measured latency, with the Pareto front."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fineprune.study.figures import chosen_runs
from fineprune.study.figures.point_labels import costs_axis, place_labels
from fineprune.study.figures.style import Figure, handle, ink, legend, listed, panels, percent, short, style
from fineprune.study.grid import DENSE
from fineprune.study.grouping import Group
from fineprune.study.study_folder import RunFolder
from fineprune.training.run.results import PeerTiming, size_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_ENGINE = "engine float32"  # what the figure times; the dense model is timed in torch
_TORCH = "torch"
_FEW = 16  # points of a panel up to which those behind the front have labels, too
_SIZE = "float32"  # the values of the packed file: those of the score

_HEADER = (
    *("task", "cost", "unit", "method", "scope", "distillation", "density"),
    *("value", "metric", "score", "front"),
)


class _Point(NamedTuple):
    group: Group
    cost: float
    score: float


class _Panel(NamedTuple):
    task: str
    what: str
    """"size" or "latency"."""
    metric: str
    points: list[_Point]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return those (cost, score) that no other one beats with a cost as low and a score as high, or better.

    By cost; of equal ones the first.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index))
    best, found = -math.inf, []
    for index in order:
        if points[index][1] > best:
            best = points[index][1]
            found.append(index)
    return found


def _best(points: Sequence[_Point]) -> list[int]:
    """Return the front among the points of runs that learned something."""
    learned = [index for index, point in enumerate(points) if point.group.learned]
    return [
        learned[place] for place in front([(points[index].cost, points[index].score) for index in learned])
    ]


def pareto(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of score against size and against latency, a row of panels for each task."""
    measured = chosen_runs.measured(runs)
    sizes = {run.path: _size(run) for run in runs}
    latencies, timed = _benches(runs)
    made = _panels(measured, sizes, latencies)
    if not any(panel.points for panel in made):
        return "no finished run says the size of its file, which older versions did not, or was timed"
    data = [row for panel in made for row in _rows(panel)]
    made, single = _worth_drawing(made, bool(latencies))

    def draw() -> "Canvas":
        canvas, axes = panels(len(made), height=3.0)
        for axis, panel in zip(axes, made, strict=True):
            _draw(axis, panel)
        methods = dict.fromkeys(point.group.cell.method for panel in made for point in panel.points)
        entries = [(handle(method, linestyle="none"), method) for method in methods]
        legend(canvas, [*entries, (handle(DENSE, marker="", linewidth=1.0, alpha=0.7), "Pareto front")])
        # What is where is known once it is laid out.
        canvas.draw_without_rendering()
        for axis, panel in zip(axes, made, strict=True):
            _label(axis, panel)
        return canvas

    parts = [
        f"Size is that of the packed weights, values in {_SIZE}, and of the dense model as it is. The line "
        "is the Pareto front: no run is both smaller (or faster) and better. Numbers at its points are "
        "densities, + with a teacher."
    ]
    parts.append(timed)
    if not all(group.learned for group in measured.groups):
        parts.append("Hollow: runs that learned nothing, which are not on the front.")
    if single:
        parts.append(f"Not drawn, since only one setting was run: {listed(single, between='; ')}.")
    unsized = [
        group.rows[0].cell.name
        for group in measured.groups
        if not any(sizes[measured.runs[row.cell].path] for row in group.rows)
    ]
    if unsized:
        parts.append(f"Without a size: {listed(unsized)}.")
    return Figure(
        "pareto", "Score against size and speed", " ".join([*parts, *measured.notes]), _HEADER, data, draw
    )


def _panels(
    measured: chosen_runs.Measured, sizes: dict[Path, float | None], latencies: dict[Path, float | None]
) -> list[_Panel]:
    """Return two panels for each task: its groups against their mean size in MB, and latency in ms."""
    made: list[_Panel] = []
    for task in dict.fromkeys(group.cell.task for group in measured.groups):
        groups = [group for group in measured.groups if group.cell.task == task]
        metric = next((group.metric for group in groups if group.metric), "score")
        for what, costs in (("size", sizes), ("latency", latencies)):
            points = []
            for group in groups:
                costs_of_seeds = (costs.get(measured.runs[row.cell].path) for row in group.rows)
                known = [cost for cost in costs_of_seeds if cost is not None]
                score = group.mean(metric)
                if known and score is not None:
                    points.append(_Point(group, statistics.fmean(known), score))
            made.append(_Panel(task, what, metric, points))
    return made


def _worth_drawing(made: Sequence[_Panel], timed: bool) -> tuple[list[_Panel], list[str]]:
    """Return the panels to draw, and the tasks left out: those of one setting, unless all are such."""
    single = [panel.task for panel in made if panel.what == "size" and len(panel.points) == 1]
    if all(panel.task in single for panel in made):
        single = []
    shown = [panel for panel in made if panel.task not in single and (panel.what == "size" or timed)]
    return shown, single


def _size(run: RunFolder) -> float | None:
    """Return the size of the packed file, or of a dense model unpacked, in MB."""
    size = size_of(run.results)
    if size is None:
        return None
    return (size.dense if run.cell.method == DENSE else size.packed[_SIZE]) / 1e6


def _benches(runs: Sequence[RunFolder]) -> tuple[dict[Path, float | None], str]:
    """Return milliseconds by run, of those that were timed alike, and a sentence about how."""
    found: dict[Path, PeerTiming] = {}
    for run in runs:
        peer = _TORCH if run.cell.method == DENSE else _ENGINE
        time = next(
            (row for row in run.timings if row.peer == peer and 0 < row.milliseconds < math.inf), None
        )
        if time is not None:
            found[run.path] = time
    if not found:
        return {}, "No run was timed: fineprune bench RUN times one."
    (how, count), *others = Counter(time.where for time in found.values()).most_common()
    about = f"Latency of the sparse engine in float32, and of torch for the dense model: {short(how, 120)}."
    if others:
        about += f" {len(found) - count} runs were timed otherwise, and are not shown there."
    untimed = sum(run.results is not None and run.path not in found for run in runs)
    if untimed:
        about += f" Not timed: {untimed} runs."
    return {path: time.milliseconds for path, time in found.items() if time.where == how}, about


def _rows(panel: _Panel) -> list[tuple[object, ...]]:
    best = set(_best(panel.points))
    unit = "MB" if panel.what == "size" else "ms"
    rows: list[tuple[object, ...]] = []
    for index, (group, cost, score) in enumerate(panel.points):
        cell = group.cell
        about = (panel.task, panel.what, unit, cell.method, cell.scope, cell.distillation, cell.density)
        rows.append((*about, cost, panel.metric, score, index in best))
    return rows


def _draw(axis: "Axes", panel: _Panel) -> None:
    axis.set_title(short(panel.task))
    axis.set_xlabel("size of the weights (MB)" if panel.what == "size" else "latency (ms)")
    axis.set_ylabel(f"{short(panel.metric.replace('_', ' '))} (%)")
    if not panel.points:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", alpha=0.7)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    every = [(point.cost, point.score) for point in panel.points]
    best = [every[index] for index in _best(panel.points)]
    if best:
        axis.plot(
            *zip(*best, strict=True), color=ink(), linewidth=1.0, alpha=0.7, drawstyle="steps-post", zorder=1
        )
    for point in panel.points:
        look = style(point.group.cell.method)
        axis.plot(
            point.cost,
            point.score,
            color=look.color,
            marker=look.marker,
            markerfacecolor=look.color if point.group.learned else "none",
            markersize=9 if point.group.cell.method == DENSE else 5.5,
            linestyle="none",
        )
    costs = [cost for cost, _ in every]
    costs_axis(axis, costs)
    axis.margins(0.12)
    if max(costs) < 1.01 * min(costs):  # ticks would differ in digits that have no room
        axis.set_xlim(0.95 * min(costs), 1.05 * max(costs))


def _label(axis: "Axes", panel: _Panel) -> None:
    """Label points with densities, those of the front first; others only where there are few."""
    best = _best(panel.points)
    rest = [index for index in range(len(panel.points)) if index not in best]
    texts = _texts([point.group for point in panel.points])
    chosen = [*best, *(rest if len(panel.points) <= _FEW else [])]
    every = [(point.cost, point.score) for point in panel.points]
    place_labels(axis, every, best, {index: texts[index] for index in chosen})


def _texts(groups: Sequence[Group]) -> list[str]:
    """Return the labels; groups of one label and method have their other settings in it."""
    texts = [(group.cell.method, _text(group)) for group in groups]
    return [
        f"{text[1]}, {short(group.cell.variant, 24)}"
        if group.cell.variant and texts.count(text) > 1
        else text[1]
        for group, text in zip(groups, texts, strict=True)
    ]


def _text(group: Group) -> str:
    cell = group.cell
    if cell.density is None:
        return DENSE
    scope = {"local": " local", "global": " global"}.get(cell.scope or "", "")
    structure = f" {cell.structure}" if cell.structure else ""
    return f"{percent(cell.density)}{structure}{scope}{' +' if cell.distillation else ''}"
