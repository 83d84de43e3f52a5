"""Write labels beside the points of a panel of scores and costs, where there is room."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def costs_axis(axis: "Axes", costs: Sequence[float]) -> None:
    """Make the axis of costs logarithmic where they differ much."""
    if max(costs) > 8 * min(costs):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(value)[0] in "25" else "")


def place_labels(
    axis: "Axes", points: Sequence[tuple[float, float]], front: Sequence[int], texts: Mapping[int, str]
) -> None:
    """Label points of a laid out panel; one without room beside it has no label.

    Args:
        axis: the panel.
        points: all points in it, which labels avoid.
        front: the points that the line of the front connects, by cost; labels avoid the line.
        texts: the labels by point, the most important first.
    """
    scale = 72 / axis.figure.dpi
    where = [tuple(scale * value for value in axis.transData.transform(point)) for point in points]
    frame = axis.get_window_extent()
    left, right, low, high = (scale * value for value in (frame.x0, frame.x1, frame.y0, frame.y1))
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in where]
    for one, other in pairwise(front):  # the steps of the front
        (x0, y0), (x1, y1) = where[one], where[other]
        taken += [(x0, y0 - 1, x1, y0 + 1), (x1 - 1, y0, x1 + 1, y1)]
    for index, text in texts.items():
        wide, tall = 4.6 * len(text), 8.0
        x, y = where[index]
        for dx, dy in ((6, -4), (-6 - wide, -4), (-wide / 2, 5), (-wide / 2, -13), (5, 4), (5, -12)):
            box = (x + dx, y + dy, x + dx + wide, y + dy + tall)
            inside = left <= box[0] and box[2] <= right and low <= box[1] and box[3] <= high
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                axis.annotate(
                    text, points[index], xytext=(dx, dy + 1), textcoords="offset points", fontsize=7.5
                )
                break


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
