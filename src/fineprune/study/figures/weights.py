"""Draw single weights: after against before training, the sizes of those that remain, and their scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.study.figures import chosen_runs
from fineprune.study.figures.style import GRAY, Figure, handle, ink, legend, panels, style
from fineprune.study.grid import DENSE
from fineprune.study.study_folder import RunFolder
from fineprune.training.run.mask_snapshot import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_INSIDE = 0.999  # of the points; a few far ones would make the rest a dot
_ACROSS = 4  # columns of the second figure

Array = NDArray[np.float32]


def weights(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of fine-tuned against pre-trained weights, a panel for each method."""
    chosen = chosen_runs.one_each(runs, chosen_runs.has_record)
    if chosen is None:
        return chosen_runs.without_record(runs)
    shown = sorted(
        _records(chosen.runs), key=lambda pair: pair[0].cell.method not in ("magnitude", "movement")
    )
    limit = max((_reach(record.before, record.after) for _, record in shown), default=0.0) or 1.0
    outside = sum(
        int(np.count_nonzero((abs(record.before) > limit) | (abs(record.after) > limit)))
        for _, record in shown
    )
    data: list[tuple[object, ...]] = []
    for run, record in shown:
        numbers = zip(_plain(record.before), _plain(record.after), record.kept.tolist(), strict=True)
        data += [(run.name, run.cell.method, *point) for point in numbers]

    def draw() -> "Canvas":
        canvas, axes = panels(len(shown), height=3.0)
        for axis, (run, record) in zip(axes, shown, strict=True):
            axis.plot([-limit, limit], [-limit, limit], color=ink(), linewidth=0.7, alpha=0.6, zorder=1)
            _points(axis, record.before, record.after, record.kept, run.cell.method)
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=run.cell.method)
            axis.set(xlabel="pre-trained weight", ylabel="fine-tuned weight")
            axis.locator_params(nbins=5)
        line = handle(DENSE, marker="", linewidth=0.7, alpha=0.6)
        legend(canvas, [(_pruned(), "pruned"), (line, "unchanged")])
        return canvas

    caption = (
        "Each point is a weight of a sample: what it was before training and what it became, gray where it "
        f"was pruned, in the method's color where it was kept. On the line it did not change. {chosen.told}"
    )
    if outside:
        caption += f" {outside:,} of {len(data):,} points lie outside the panels."
    header = ("run", "method", "before", "after", "kept")
    return Figure("weights", "Fine-tuned against pre-trained weights", caption, header, data, draw)


def remaining_weights(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of the histogram of remaining weights, and of weight against score."""
    chosen = chosen_runs.one_each(runs, chosen_runs.has_record)
    if chosen is None:
        return chosen_runs.without_record(runs)
    shown = _records(chosen.runs)
    data: list[tuple[object, ...]] = []
    for run, record in shown:
        bins = zip(_plain(record.edges[:-1]), _plain(record.edges[1:]), record.counts.tolist(), strict=True)
        data += [("histogram", run.name, run.cell.method, *one, None, None, None) for one in bins]
        if record.score is not None:
            points = zip(_plain(record.after), _plain(record.score), record.kept.tolist(), strict=True)
            data += [("points", run.name, run.cell.method, None, None, None, *point) for point in points]

    def draw() -> "Canvas":
        across = min(len(shown), _ACROSS)
        rows = -(-len(shown) // across)
        canvas, axes = panels(2 * rows * across, across, width=7.4, height=2.0)
        for axis in axes:
            axis.set_visible(False)
        for index, (run, record) in enumerate(shown):
            row, column = divmod(index, across)
            upper, lower = (axes[(2 * row + half) * across + column] for half in (0, 1))
            _histogram(upper, record, run.cell.method)
            _scores(lower, record, run.cell.method)
            lower.set_xlim(upper.get_xlim())
            if column == 0:
                upper.set_ylabel("thousands of weights")
                lower.set_ylabel("score")
        if any(record.score is not None for _, record in shown):
            legend(canvas, [(_pruned(), "pruned")])
        return canvas

    without = [run.cell.method for run, record in shown if record.score is None]
    caption = (
        "Above, the histogram of the weights that remain. Below, the trained weights of a sample and their "
        f"scores, gray where pruned. {chosen.told}"
    )
    if without:
        caption += f" No scores: {', '.join(without)} learns none."
    header = ("part", "run", "method", "from", "to", "count", "weight", "score", "kept")
    return Figure("remaining-weights", "The remaining weights, and their scores", caption, header, data, draw)


def _records(runs: Sequence[RunFolder]) -> list[tuple[RunFolder, Record]]:
    return [(run, run.record) for run in runs if run.record is not None]


def _points(axis: "Axes", x: Array, y: Array, kept: NDArray[np.bool_], method: str) -> None:
    """Draw pruned weights below kept ones; dots are pixels, also in an SVG."""
    for mask, color, size, order in ((~kept, GRAY, 1.2, 2), (kept, style(method).color, 2.6, 3)):
        axis.plot(
            x[mask],
            y[mask],
            linestyle="none",
            marker="o",
            markersize=size,
            markeredgewidth=0,
            alpha=0.5 if color == GRAY else 0.75,
            color=color,
            zorder=order,
            rasterized=True,
        )


def _histogram(axis: "Axes", record: Record, method: str) -> None:
    axis.set_visible(True)
    axis.set_title(method)
    filled = record.edges[:-1][record.counts > 0]
    if not len(filled) or not np.isfinite(record.edges).all():
        axis.text(0.5, 0.5, "nothing remains", transform=axis.transAxes, ha="center", va="center", alpha=0.7)
        return
    axis.stairs(record.counts / 1000, record.edges, fill=True, color=style(method).color)
    share = np.cumsum(record.counts) / record.counts.sum()
    inside = (share > 1 - _INSIDE) & (share < _INSIDE)
    limit = 1.1 * float(abs(record.edges[:-1][inside] if inside.any() else filled).max()) or 1.0
    axis.set_xlim(-limit, limit)
    axis.locator_params(axis="x", nbins=3)
    axis.locator_params(axis="y", nbins=4)


def _scores(axis: "Axes", record: Record, method: str) -> None:
    axis.set_visible(True)
    axis.set_xlabel("weight")
    if record.score is None:
        axis.text(0.5, 0.5, "no scores", transform=axis.transAxes, ha="center", va="center", alpha=0.7)
        axis.set_yticks([])
        axis.locator_params(axis="x", nbins=3)
        return
    _points(axis, record.after, record.score, record.kept, method)
    finite = record.score[np.isfinite(record.score)]
    if len(finite):
        low, high = np.quantile(finite, [(1 - _INSIDE) / 2, (1 + _INSIDE) / 2])
        margin = 0.05 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
    axis.locator_params(nbins=3)


def _pruned() -> Any:
    return handle(DENSE, linestyle="none", marker="o", color=GRAY)


def _reach(*arrays: Array) -> float:
    """Return the distance from zero of all but a few points."""
    joined = np.abs(np.concatenate(arrays))
    joined = joined[np.isfinite(joined)]
    return 1.1 * float(np.quantile(joined, _INSIDE)) if len(joined) else 0.0


def _plain(values: NDArray[Any]) -> list[float]:
    """Return numbers with the digits that float32 has."""
    return [float(f"{value:.7g}") for value in values.tolist()]
