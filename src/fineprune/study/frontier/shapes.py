"""Draw the score against FLOPs and measured time, by what of a model was made smaller."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fineprune.errors import FinepruneError
from fineprune.structure import ALL, TIED, parts_of
from fineprune.study.figures.pareto import front
from fineprune.study.figures.point_labels import costs_axis, place_labels
from fineprune.study.figures.style import Figure, ink, legend, panels, percent, short
from fineprune.study.frontier.points import Model, Point, Task
from fineprune.study.study_folder import RunFolder
from fineprune.study.task_labels import run_of
from fineprune.training.run.results import gigaflops_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DENSE, SMALL, LAYERS = "dense", "another dense model", "layers left out"
WEIGHTS, BLOCKS, UNITS, LEVELS = "single weights", "blocks", "heads, neurons", "heads, neurons, then weights"
KINDS = (DENSE, SMALL, LAYERS, WEIGHTS, BLOCKS, UNITS, LEVELS)
_COLORS = ("#5F7F8F", "#8A7B00", "#D55E00", "#B5659A", "#0072B2", "#009E73")  # of `style`, one a kind
_MARKERS = ("s", "P", "o", "D", "^", "v")
_HEADER = (
    *("task", "model", "kind", "density", "seeds", "metric", "score", "gigaflops"),
    *("runtime", "ms_per_text", "score_there"),
)


class Shape(NamedTuple):
    """One model: its kind, and its score at its FLOPs and in its fastest runtime."""

    model: Model
    kind: str
    score: float
    """In percent, in torch."""
    gigaflops: float | None
    """Of a text of 128 tokens, without those by zeros; None: the runs do not say."""
    fastest: Point | None
    """None: it was not timed."""


def shapes_of(task: Task, points: Iterable[Point]) -> list[Shape]:
    """Return the models of a task that have a score, with their kinds."""
    kinds = _kinds(task)
    fastest: dict[str, Point] = {}
    for point in sorted(points, key=lambda point: -point.milliseconds):
        if point.usable:
            fastest[point.model.name] = point
    found = []
    for model in task.models:
        score = model.group.mean(task.metric)
        flops = [gigaflops_of(run.results, run.config) for run in model.runs if run.results is not None]
        known = [value for value in flops if value is not None]
        if score is not None:
            mean = statistics.fmean(known) if known else None
            found.append(Shape(model, kinds[model.name], score, mean, fastest.get(model.name)))
    return found


def draw(task: Task, points: Iterable[Point]) -> Figure | None:
    """Return the figure of a task; None where all models that can be drawn are of one kind, or dense."""
    shapes = shapes_of(task, points)
    if len({shape.kind for shape in shapes if shape.gigaflops or shape.fastest} - {DENSE}) < 2:
        return None
    parts = [_Panel("GFLOPs of a text", [(s, s.gigaflops, s.score) for s in shapes if s.gigaflops])]
    timed = [(s, s.fastest.milliseconds, s.fastest.score) for s in shapes if s.fastest is not None]
    parts += [_Panel("latency (ms a text)", timed)] * bool(timed)
    parts = [part for part in parts if part.points]

    def canvas() -> "Canvas":
        made, axes = panels(len(parts), height=3.6)
        for axis, part in zip(axes, parts, strict=True):
            _draw(axis, part, task.metric)
        present = {shape.kind for part in parts for shape, *_ in part.points}
        legend(made, [(_handle(kind), kind) for kind in KINDS if kind in present])
        made.draw_without_rendering()  # labels need to know where everything is
        for axis, part in zip(axes, parts, strict=True):
            every = [(cost, score) for _, cost, score in part.points]
            texts = {index: _text(part.points[index][0]) for index in part.best}
            place_labels(axis, every, part.best, texts)
        return made

    caption = (
        "FLOPs are those of a text of 128 tokens without those by zeros, which the engine leaves out and "
        "other runtimes do not. The line is the Pareto front, numbers at its points are densities."
    )
    if timed:
        caption += " Each model is timed and scored in the runtime that is fastest for it."
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in task.name)
    title = f"{task.name}: score against FLOPs{' and latency' if timed else ''}, by what was made smaller"
    return Figure(f"shapes-{name}", title, caption, _HEADER, _rows(task, shapes), canvas)


class _Panel(NamedTuple):
    label: str
    points: list[tuple[Shape, float, float]]
    """Models with cost and score."""

    @property
    def best(self) -> list[int]:
        """The front, by cost, among models that learned something."""
        able = [index for index, (shape, *_) in enumerate(self.points) if shape.model.group.learned]
        return [able[place] for place in front([self.points[index][1:] for index in able])]


def _kinds(task: Task) -> dict[str, str]:
    """Return the kind of each model by its name; dense models are told by the one that was pruned."""
    names = {model.name: _root(model.runs[0], task.runs) for model in task.models}
    pruned = Counter(names[model.name] for model in task.models if not model.dense)
    weights = {model.name: _weights(model) for model in task.models if model.dense}
    usual = pruned.most_common(1)[0][0] if pruned else names[max(weights, key=weights.__getitem__)]
    most = max((size for name, size in weights.items() if names[name] == usual), default=0)
    kinds = {}
    for model in task.models:
        section = model.runs[0].recipe.get("model")
        if not model.dense:
            kinds[model.name] = kind_of((model.runs[0].recipe["pruning"] or {}).get("structure", "element"))
        elif isinstance(section, dict) and section.get("structure"):
            kinds[model.name] = kind_of(section["structure"])  # cut before it was trained
        elif names[model.name] != usual:
            kinds[model.name] = SMALL
        else:
            kinds[model.name] = DENSE if weights[model.name] == most else LAYERS
    return kinds


def kind_of(structure: Any) -> str:
    """Return one of `KINDS` for the structure of a pruning."""
    if isinstance(structure, list) and any(isinstance(level, (Mapping, str)) for level in structure):
        return LEVELS
    try:
        parts = parts_of(structure)
    except FinepruneError:
        return WEIGHTS
    if any(unit in TIED for part in parts.values() for unit in part.units):
        return UNITS
    return WEIGHTS if ALL in parts and parts[ALL].unit == "element" else BLOCKS


def _root(run: RunFolder, runs: Sequence[RunFolder]) -> str:
    """Return the model that a run, or the run that it began with, was made of."""
    section = run.recipe.get("model")
    name = section.get("name") if isinstance(section, dict) else section
    others = [other for other in runs if other.path.parent == run.path.parent and other is not run]
    beside = {other.name: other for other in others}
    before = run_of(name, run.path.resolve().parent.name)
    return _root(beside[before], others) if before in beside else str(name)


def _weights(model: Model) -> int:
    """Return the weights of a dense model's blocks."""
    return int((model.runs[0].results or {}).get("total", 0))


def _look(kind: str) -> dict[str, Any]:
    if kind == DENSE:
        return {"color": ink(), "marker": "*", "markersize": 9}
    place = KINDS.index(kind) - 1
    return {"color": _COLORS[place], "marker": _MARKERS[place], "markersize": 5.5}


def _draw(axis: "Axes", part: _Panel, metric: str) -> None:
    axis.set_xlabel(part.label)
    axis.set_ylabel(f"{short(metric.replace('_', ' '))} (%)")
    best = [part.points[index][1:] for index in part.best]
    if best:
        axis.plot(
            *zip(*best, strict=True), color=ink(), linewidth=1.0, alpha=0.7, drawstyle="steps-post", zorder=1
        )
    for shape, cost, score in part.points:
        look = _look(shape.kind)
        filled = look["color"] if shape.model.group.learned else "none"
        axis.plot(cost, score, linestyle="none", markerfacecolor=filled, **look)
    costs_axis(axis, [cost for _, cost, _ in part.points])
    axis.margins(0.12)


def _text(shape: Shape) -> str:
    density = shape.model.group.cell.density
    return short(shape.model.name, 24) if density is None else percent(density)


def _handle(kind: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", **_look(kind))


def _rows(task: Task, shapes: Iterable[Shape]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for model, kind, score, gigaflops, fastest in shapes:
        about = (task.name, model.name, kind, model.group.cell.density, len(model.runs))
        there = () if fastest is None else (fastest.runtime, fastest.milliseconds, fastest.score)
        rows.append((*about, task.metric, score, gigaflops, *(there or (None,) * 3)))
    return rows
