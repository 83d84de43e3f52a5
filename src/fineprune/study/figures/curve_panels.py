"""Draw a panel of scores against densities, with its own lines and the published ones."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fineprune.config import METHODS
from fineprune.study.figures.published import points as published
from fineprune.study.figures.style import densities_axis, handle, ink, short, style
from fineprune.study.grouping import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAPER_DASH: dict[bool, Any] = {False: (0, (1, 2)), True: (0, (4, 1.5, 1, 1.5))}


_FURTHER: tuple[Any, ...] = (None, (0, (1, 1.2)), (0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
"""Dashes of the lines of one method, from the second on."""


class Point(NamedTuple):
    """The runs of one setting, and their point in the panel."""

    group: Group
    density: float
    """The mean of the densities that were reached."""
    mean: float
    deviation: float | None


class Line(NamedTuple):
    """A method with one scope, from sparse to dense."""

    method: str
    scope: str | None
    label: str
    main: bool
    """Drawn in full; else thin, for comparison."""
    points: list[Point]
    number: int = 0
    """Of the lines of one method and scope, which differ in other settings."""

    def look(self, dashed: bool) -> dict[str, Any]:
        """Return the changes to the method's style: hollow and dashed where global, or not the first."""
        if not dashed and not self.number:
            return {}
        dash = (0, (4, 1.6)) if dashed else style(self.method).dash
        return {"linestyle": _FURTHER[self.number % len(_FURTHER)] or dash, "markerfacecolor": "none"}


class Panel(NamedTuple):
    """A task, without or with a teacher."""

    task: str
    """The name that the runs have for it; the first word of `title`."""
    title: str
    distilled: bool
    metric: str
    lines: list[Line]
    dense: float | None
    dense_label: str = ""
    """Of which dense runs that is, where there may be a doubt."""


def beside(panel: Panel) -> list[tuple[Line, list[tuple[float, float]]]]:
    """Return, for each line, the published points at about the same densities."""
    reached = [point.density for line in panel.lines for point in line.points]
    low, high = min(reached) / 1.25, max(reached) * 1.25
    found = []
    for line in panel.lines:
        if line.main:
            task = panel.task.partition(",")[0]  # the model may follow
            every = published(task, panel.distilled, line.method, line.scope, panel.metric)
            points = [point for point in every if low <= point[0] <= high]
            if points:
                found.append((line, points))
    return found


def draw_panel(axis: "Axes", panel: Panel, dashed_global: bool) -> None:
    """Draw the published points, then the lines above them, then the dense level and 95 % of it."""
    color = ink()
    for line, points in beside(panel):
        look = style(line.method)
        axis.plot(
            *zip(*points, strict=True),
            color=look.color,
            marker=look.marker,
            linestyle=_PAPER_DASH[dashed_global and line.scope == "global"],
            linewidth=0.9,
            markersize=4,
            markerfacecolor="none",
            markeredgewidth=0.8,
            alpha=0.75,
        )
    for line in panel.lines:
        _draw_line(axis, line, dashed_global and line.scope == "global")
    densities_axis(axis, [point.density for line in panel.lines for point in line.points])
    if panel.dense is not None:
        for level, dash, text, place in (
            (panel.dense, "-", "dense", "bottom"),
            (0.95 * panel.dense, (0, (4, 3)), "95 %:", "top"),
        )[: 2 if panel.dense > 0 else 1]:
            right = _freer_right(axis, panel, level)
            axis.axhline(level, color=color, linewidth=0.9, linestyle=dash, alpha=0.8)
            axis.annotate(
                f"{text} {level:.1f}",
                (1 if right else 0, level),
                xycoords=("axes fraction", "data"),
                xytext=(-3 if right else 3, 1.5 if place == "bottom" else -1.5),
                textcoords="offset points",
                ha="right" if right else "left",
                va=place,
                fontsize=7.5,
            )
    axis.margins(y=0.1)
    axis.autoscale(axis="y")
    axis.set_title(panel.title)
    axis.set_ylabel(f"{short(panel.metric.replace('_', ' '))} (%)")


def _freer_right(axis: "Axes", panel: Panel, level: float) -> bool:
    """Return whether the points of the right half are farther from this level than those of the left half."""
    middle = math.sqrt(math.prod(axis.get_xlim()))
    points = [(point.density, point.mean) for line in panel.lines for point in line.points]
    points += [point for _, found in beside(panel) for point in found]
    left = [abs(score - level) for density, score in points if density < middle]
    right = [abs(score - level) for density, score in points if density >= middle]
    return min(right, default=math.inf) > min(left, default=math.inf)


def _draw_line(axis: "Axes", line: Line, dashed: bool) -> None:
    look = style(line.method)
    x = [point.density for point in line.points]
    y = [point.mean for point in line.points]
    if not line.main:
        axis.plot(x, y, color=look.color, linewidth=0.8, alpha=0.8)
        if len(x) == 1:  # a line of one point is not seen
            axis.plot(x, y, color=look.color, linestyle="none", marker="_", markersize=7, alpha=0.8)
        return
    axis.plot(
        x,
        y,
        **({"color": look.color, "marker": look.marker, "linestyle": look.dash} | line.look(dashed)),
        zorder=3,
    )
    spread = [point for point in line.points if point.deviation is not None]
    low = [point.mean - (point.deviation or 0) for point in spread]
    high = [point.mean + (point.deviation or 0) for point in spread]
    places = [point.density for point in spread]
    if len(spread) > 1 and len(spread) == len(line.points):
        axis.fill_between(places, low, high, color=look.color, alpha=0.22, linewidth=0, zorder=2)
    elif spread:
        axis.vlines(places, low, high, color=look.color, linewidth=1.2, zorder=2)


def legend_entries(made: Sequence[Panel], by_scope: bool, paper: bool) -> list[tuple[Any, str]]:
    """Return the legend entries: the lines of all panels, each once, and the thin and the dotted ones."""
    lines = {line.label: line for panel in made for line in panel.lines if line.main}
    order = list(METHODS)
    entries = []
    for line in sorted(
        lines.values(), key=lambda line: (order.index(line.method), line.scope != "local", line.number)
    ):
        look = line.look(by_scope and line.scope == "global")
        entries.append((handle(line.method, **look), line.label))
    if any(not line.main for panel in made for line in panel.lines):
        entries.append((handle("dense", marker="", linewidth=0.8), "without a teacher"))
    if paper:
        faint = {
            "linestyle": _PAPER_DASH[False],
            "linewidth": 0.9,
            "markersize": 4,
            "markerfacecolor": "none",
        }
        entries.append((handle("dense", marker="o", alpha=0.75, **faint), "paper (BERT-base)"))
    return entries
