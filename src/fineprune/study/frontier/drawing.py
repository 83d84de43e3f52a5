"""Draw scores against latency, size and memory, with the front of all models and that of the dense ones."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fineprune.config import METHODS
from fineprune.study.figures.point_labels import costs_axis, place_labels
from fineprune.study.figures.style import Figure, ink, legend, panels, percent, short, style
from fineprune.study.frontier.measurements import Measurement
from fineprune.study.frontier.points import COSTS, Model, Point, Task, best_of, reference_ms
from fineprune.study.grid import DENSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_DENSE, _ENGINE, _OTHER = "dense", "pruned, engine or torch", "pruned, another runtime"
_HEADER = (
    *("task", "model", "runtime", "dense", "method", "density", "seeds", "metric", "score", "standard_error"),
    *("ms_per_text", "times_reference", "MB", "memory_MB", "answers_wrong"),
    *("front_ms", "front_MB", "front_memory"),
)


def draw(task: Task, points: Sequence[Point], entries: Iterable[Measurement]) -> Figure:
    """Return the figure of one task; `entries` are the measurements that the points were made of."""
    costs = [cost for cost in COSTS if any(getattr(point, cost) is not None for point in points)]

    def canvas() -> "Canvas":
        made, axes = panels(len(costs), across=3, height=3.6, width=11.0)
        for axis, cost in zip(axes, costs, strict=True):
            _draw(axis, points, cost, task.metric)
        present = dict.fromkeys(map(_kind, points))
        lines = [(_line(False), "best of all"), (_line(True), "best of the dense ones")]
        legend(made, [*((_handle(kind), kind) for kind in present), *lines])
        made.draw_without_rendering()  # labels need to know where everything is
        for axis, cost in zip(axes, costs, strict=True):
            _label(axis, points, cost)
        return made

    title = f"{task.name}: score against latency, size and memory"
    return Figure(
        f"frontier-{_file_name(task.name)}",
        title,
        caption(points, entries),
        _HEADER,
        _rows(task, points),
        canvas,
    )


def caption(points: Sequence[Point], entries: Iterable[Measurement]) -> str:
    """Return how the points were measured, and what is not among them."""
    done = [entry for entry in entries if entry.failed is None]
    first = done[0]
    threads = f"{first.place.threads} thread{'' if first.place.threads == 1 else 's'}"
    scored = (
        f"all {first.scored:,}"
        if first.scored == first.available
        else f"{first.scored:,} of {first.available:,}"
    )
    parts = [
        f"{first.place.machine}, {threads}. One text at a time, at its own length (the timed ones have "
        f"{first.tokens:.0f} tokens on average), without the tokenizer. Times are ratios to torch on one "
        f"model in the same rounds, times the {reference_ms(done):.2f} ms that it takes. Every score is of "
        f"the answers of that runtime and type, on {scored} validation examples.",
        "Points are named by density, or by run if two models have one density, with the type if it is not "
        "float32.",
    ]
    if any(point.error is not None for point in points):
        parts.append("Bars: standard errors over seeds.")
    if any(point.seeds == 1 for point in points):
        parts.append("Points without a bar have one seed: small differences may be noise.")
    if any(not point.usable for point in points):
        parts.append("Hollow, and never the best: wrong answers in float32, or runs that learned nothing.")
    return " ".join(parts)


def _kind(point: Point) -> str:
    if point.model.dense:
        return _DENSE
    return _OTHER if point.runtime.startswith(("onnx", "OpenVINO")) else _ENGINE


def _look(kind: str) -> dict[str, Any]:
    if kind == _DENSE:
        return {"color": ink(), "marker": "*", "markersize": 8}
    engine, _, other, *_ = METHODS  # any two looks that differ
    look = style(engine if kind == _ENGINE else other)
    return {"color": look.color, "marker": look.marker, "markersize": 5.5}


def _draw(axis: "Axes", points: Sequence[Point], cost: str, metric: str) -> None:
    axis.set_xlabel(COSTS[cost])
    axis.set_ylabel(f"{short(metric.replace('_', ' '))} (%)")
    known = [point for point in points if getattr(point, cost) is not None]
    for dense in (False, True):
        chosen = [point for point in known if point.model.dense or not dense]
        best = [chosen[index] for index in best_of(chosen, cost)]
        if best:
            pairs = [(getattr(point, cost), point.score) for point in best]
            settings = {"linestyle": "--", "alpha": 0.5} if dense else {"alpha": 0.8}
            axis.plot(
                *zip(*pairs, strict=True),
                color=ink(),
                linewidth=1.0,
                drawstyle="steps-post",
                zorder=1,
                **settings,
            )
    for point in known:
        look = _look(_kind(point))
        axis.errorbar(
            getattr(point, cost),
            point.score,
            yerr=point.error,
            linestyle="none",
            elinewidth=1.0,
            capsize=2.0,
            markerfacecolor=look["color"] if point.usable else "none",
            **look,
        )
    costs_axis(axis, [getattr(point, cost) for point in known])
    axis.margins(0.12)


def _label(axis: "Axes", points: Sequence[Point], cost: str) -> None:
    """Label the fronts of all and of the dense models."""
    known = [point for point in points if getattr(point, cost) is not None]
    best = best_of(known, cost)
    dense = [point for point in known if point.model.dense]
    rivals = [known.index(dense[index]) for index in best_of(dense, cost)]
    pairs = [(getattr(point, cost), point.score) for point in known]
    names = _names(point.model for point in points)
    texts = {index: _text(known[index], names) for index in [*best, *rivals]}
    place_labels(axis, pairs, best, texts)


def _text(point: Point, names: Mapping[str, str]) -> str:
    runtime, _, dtype = point.runtime.partition(" ")
    where = {"engine": "", "onnxruntime": "ORT"}.get(runtime, runtime)
    kind = "" if dtype == "float32" else dtype.replace("bfloat16", "bf16")
    return " ".join(filter(None, (names[point.model.name], where, kind)))


def _names(models: Iterable[Model]) -> dict[str, str]:
    """Return what each model is called at its points, by its name.

    That is its density if this tells the models apart, else the parts of its name that the others of its kind
    (dense, pruned) do not all have, and the density if they do not say it.
    """
    known = {model.name: model for model in models}
    densities = {name: _density(model) for name, model in known.items()}
    if len(set(densities.values())) == len(known):
        return densities
    parts = {name: re.split(r"(?<!\de)[-/]", name) for name in known}  # 1e-3 is one part
    result = {}
    for name, model in known.items():
        kind = [set(parts[other]) for other, one in known.items() if one.dense == model.dense]
        shared = set.intersection(*kind) - ({DENSE} if model.dense else set())
        left = [part for part in parts[name] if part not in shared]
        density = model.group.cell.density
        if not model.dense and density is not None and not {f"{density:g}", f"{100 * density:g}"} & set(left):
            left.append(densities[name])
        result[name] = " ".join(left) or densities[name]
    return result if len(set(result.values())) == len(result) else {name: name for name in known}


def _density(model: Model) -> str:
    density = model.group.cell.density
    return "dense" if model.dense else model.name if density is None else percent(density)


def _rows(task: Task, points: Sequence[Point]) -> list[tuple[object, ...]]:
    fronts = [set(best_of(points, cost)) for cost in COSTS]
    rows: list[tuple[object, ...]] = []
    for index, point in enumerate(points):
        cell = point.model.group.cell
        about = (
            task.name,
            point.model.name,
            point.runtime,
            point.model.dense,
            cell.method,
            cell.density,
            point.seeds,
        )
        measured = (point.milliseconds, point.speed, point.megabytes, point.memory, point.wrong)
        rows.append(
            (*about, task.metric, point.score, point.error, *measured, *(index in best for best in fronts))
        )
    return rows


def _handle(kind: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", **_look(kind))


def _line(dense: bool) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=ink(), linewidth=1.0, linestyle="--" if dense else "-", alpha=0.5 if dense else 0.8
    )


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)
