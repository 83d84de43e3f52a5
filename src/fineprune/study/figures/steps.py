"""Draw the log of a run over its steps: density, threshold, lambda and loss, and the changes of the mask."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fineprune.study.figures import chosen_runs
from fineprune.study.figures.style import NOISE, Figure, handle, legend, panels, percent, style
from fineprune.study.grid import DENSE
from fineprune.study.study_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_KEYS = ("density", "threshold", "lambda")
_WHOLE, _TASK = "loss", "task_loss"
_PARTS = (_TASK, "distillation", "hidden", "penalty")
"""The parts of the loss, which are logged where it has more than one; older runs logged only the whole."""
_CHANGED = "mask_changed"
_LOSSES = (_WHOLE, *_PARTS)
_SETTLED = 1e-3  # of the kept weights: less than this at each refresh counts as settled

_Series = list[tuple[int, float]]


def steps(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of density, threshold, lambda and loss, a panel each."""
    chosen = chosen_runs.one_each(runs, lambda run: bool(_series(run, "density")))
    if chosen is None:
        dense = [run for run in runs if run.cell.method == DENSE and _series(run, "loss")]
        if not dense:
            return "no run's metrics.jsonl has lines of training"
        chosen = chosen_runs.Chosen(dense[:1], f"The run: {dense[0].name}.")
    apart = any(_series(run, _TASK) for run in chosen.runs)
    columns_of = (*_KEYS, *_PARTS * apart, _WHOLE)
    shown = {run.name: {key: _series(run, key) for key in columns_of} for run in chosen.runs}
    data: list[tuple[object, ...]] = []
    for run in chosen.runs:
        columns = [dict(shown[run.name][key]) for key in columns_of]
        for step in sorted({step for column in columns for step in column}):
            data.append((run.name, run.cell.method, step, *(column.get(step) for column in columns)))
    whole = [run.name for run in chosen.runs if apart and not shown[run.name][_TASK]]
    for name in whole:
        shown[name][_TASK] = shown[name][_WHOLE]
    keys = [key for key in columns_of if any(series[key] for series in shown.values())]
    keys = [key for key in keys if not (apart and key == _WHOLE) and not _is_zero(key, shown)]
    several = len(chosen.runs) > 1
    last = max(step for series in shown.values() for points in series.values() for step, _ in points)

    def draw() -> "Canvas":
        canvas, axes = panels(len(keys), height=1.9)
        for axis, key in zip(axes, keys, strict=True):
            for under, run in enumerate(reversed(chosen.runs)):
                # Wider below: equal lines stay visible.
                series = _scaled(shown[run.name][key], key, several)
                _line(axis, series, run.cell.method, width=1.2 + 0.7 * (len(chosen.runs) - 1 - under))
            _dress(axis, key, several)
            axis.set_xlim(right=1.02 * last)
        legend(canvas, [(_handle(run), run.cell.method) for run in chosen.runs])
        return canvas

    parts = [f"The log of the training. {chosen.told}"]
    if several and "threshold" in keys:
        parts.append("Thresholds are of different quantities: each as a share of its largest.")
    if apart:
        parts.append(
            "The task's loss is that of the labels alone; what a teacher and a penalty add comes beside it."
        )
    elif "lambda" in keys:
        parts.append("The loss includes the penalty that lambda weighs.")
    older = [name for name in whole if shown[name]["lambda"] or _taught(chosen.runs, name)]
    if older:
        parts.append(f"Of runs of an older version it is the whole loss: {', '.join(older)}.")
    parts += _cut(chosen.runs)
    header = ("run", "method", "step", *columns_of)
    return Figure("steps", "Over the steps of training", " ".join(parts), header, data, draw)


def mask_changes(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of the share of the mask that each refresh changed."""
    chosen = chosen_runs.one_each(runs, lambda run: bool(_series(run, _CHANGED)))
    if chosen is None:
        return "no run's metrics.jsonl says how much of the mask changed, which older versions did not write"
    shown = [(run, _series(run, _CHANGED)) for run in chosen.runs]
    data: list[tuple[object, ...]] = [
        (run.name, run.cell.method, step, share) for run, series in shown for step, share in series
    ]
    positive = [share for _, series in shown for _, share in series if share > 0]
    zeros = any(share == 0 for _, series in shown for _, share in series)

    def draw() -> "Canvas":
        canvas, (axis,) = panels(1, height=2.8)
        canvas.set_figwidth(5.6)
        floor = 10 ** (math.floor(math.log10(min(positive))) - 0.5) if positive else 1.0
        for run, series in shown:
            _line(axis, [(step, 100 * max(share, floor)) for step, share in series], run.cell.method, True)
        _change_axis(axis, floor, max(positive, default=1.0), zeros)
        legend(canvas, [(handle(run.cell.method, markersize=3.5), run.cell.method) for run, _ in shown])
        return canvas

    parts = [
        f"How much of the whole mask the last refresh before each line of the log turned over. {chosen.told}",
        *filter(None, (_when_settled(run) for run, _ in shown)),
        *_cut(chosen.runs),
    ]
    header = ("run", "method", "step", "changed")
    return Figure("mask-changes", "When the mask settles", " ".join(parts), header, data, draw)


def _series(run: RunFolder, key: str) -> _Series:
    """Return step and value of the lines with both, by step; in a continued run the later line counts.

    Losses are those of training: an evaluation's line has the penalty after the step.
    """
    found: dict[int, float] = {}
    for line in run.lines:
        if key in _LOSSES and _WHOLE not in line:
            continue
        step, value = line.get("step"), line.get(key)
        if isinstance(step, int) and isinstance(value, (int, float)) and math.isfinite(value):
            found[step] = float(value)
    return sorted(found.items())


def _taught(runs: Sequence[RunFolder], name: str) -> bool:
    return any(run.cell.distillation for run in runs if run.name == name)


def _is_zero(key: str, shown: dict[str, dict[str, _Series]]) -> bool:
    """Return whether a part of the loss is zero in all runs, as without a teacher or a penalty."""
    return key in _PARTS[1:] and not any(value for series in shown.values() for _, value in series[key])


def _scaled(series: _Series, key: str, several: bool) -> _Series:
    if key == "density":
        return [(step, 100 * value) for step, value in series]
    if key == "threshold" and several:
        largest = max(abs(value) for _, value in [(0, NOISE), *series])
        return [(step, value / largest) for step, value in series]
    return series


def _line(axis: "Axes", series: _Series, method: str, dots: bool = False, width: float = 1.4) -> None:
    if series:
        color, marker, dash = style(method)
        few = len(series) < 3 or dots
        every = max(1, len(series) // 25) if dots else 1
        axis.plot(
            *zip(*series, strict=True),
            color=color,
            linestyle=dash,
            linewidth=width,
            marker=marker if few else "",
            markersize=3.5,
            markevery=every,
        )


def _dress(axis: "Axes", key: str, several: bool) -> None:
    axis.set_xlabel("step")
    axis.set_xlim(left=0)
    unit = {"density": " (%)", "threshold": " (share of its largest)" if several else ""}
    axis.set_title(key.replace("_", " ") + unit.get(key, ""))
    axis.locator_params(axis="x", nbins=5)
    high = axis.get_ylim()[1]
    if key == "density":
        axis.set_ylim(0, max(high, 1))
    elif key in _LOSSES and _low(axis) > 0 and high > 20 * _low(axis):
        axis.set_yscale("log")
    if key == "lambda" or key in _LOSSES:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    if axis.get_yscale() == "log":
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:,.3g}" if f"{value:e}"[0] in "25" else "")


def _low(axis: "Axes") -> float:
    return min(float(np.min(line.get_ydata())) for line in axis.get_lines())


def _change_axis(axis: "Axes", floor: float, top: float, zeros: bool) -> None:
    """Make an axis logarithmic, with a place for zero below."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_xlabel("step")
    axis.set_ylabel("mask that changed")
    axis.set_yscale("log")
    first, last = math.ceil(math.log10(floor)), math.ceil(math.log10(top))
    stride = max(1, (last - first) // 6)
    powers = [10.0**power for power in range(last, first - 1, -stride)]
    ticks = [100 * power for power in powers] + ([100 * floor] if zeros else [])
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(
        lambda value, _: (
            "0" if zeros and value <= 101 * floor else f"{value:.10f}".rstrip("0").rstrip(".") + " %"
        )
    )
    axis.set_ylim(100 * floor / 1.6 if zeros else None, 100 * top * 1.6)


def _when_settled(run: RunFolder) -> str:
    """Return a sentence on the step from which less than `_SETTLED` of the kept weights changes.

    It is empty if no line has both.
    """
    kept = dict(_series(run, "density"))
    series = [(step, share / kept[step]) for step, share in _series(run, _CHANGED) if kept.get(step)]
    if not series:
        return ""
    moving = [step for step, share in series if share >= _SETTLED]
    after = [step for step, _ in series if not moving or step > moving[-1]]
    if not after:
        return f"{run.cell.method} still changes {percent(series[-1][1])} of the kept weights at the end."
    return f"{run.cell.method}: less than {percent(_SETTLED)} of the kept weights from step {after[0]} on."


def _handle(run: RunFolder) -> Any:
    return handle(run.cell.method, marker="")


def _cut(runs: Sequence[RunFolder]) -> list[str]:
    names = [run.name for run in runs if run.results is None]
    return [f"Not finished, shown as far as it came: {', '.join(names)}."] if names else []
