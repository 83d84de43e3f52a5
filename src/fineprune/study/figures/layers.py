"""Draw the density by layer and by kind of matrix, and the shares of empty heads and neurons."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fineprune.pruning.anatomy import KINDS, place_of
from fineprune.pruning.dead_units import LayerUnits, remaining_units
from fineprune.study.figures import chosen_runs
from fineprune.study.figures.style import Figure, handle, ink, legend, panels, percent, short, style
from fineprune.study.study_folder import RunFolder
from fineprune.training.run.mask_snapshot import MatrixSnapshot, counts_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_Layer = tuple[str, int]  # stack and number
_GAP = 0.8  # between stacks, in layers
_FLAT = 0.02  # of the highest density: a picture of smaller differences is that of one number


def density_by_layer(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of the density of each layer, and of each kind of matrix."""
    chosen = chosen_runs.one_each(runs, chosen_runs.has_record, prefer_global=True)
    if chosen is None:
        return chosen_runs.without_record(runs)
    shown = [(run, run.record.matrices) for run in chosen.runs if run.record is not None]
    layers = {run.name: _densities(matrices, _layer_of) for run, matrices in shown}
    kinds = {run.name: _densities(matrices, lambda name: place_of(name).kind) for run, matrices in shown}
    places = list(dict.fromkeys(place for found in layers.values() for place in found if place is not None))
    present = [kind for kind in KINDS if any(kind in found for found in kinds.values())]
    if not present:
        return "the records have no matrices"
    data: list[tuple[object, ...]] = []
    for run, _ in shown:
        about = (run.name, run.cell.method, run.cell.selection)
        for place, density in layers[run.name].items():
            if place is not None:
                data.append((*about, "layer", *place, None, density))
        data += [(*about, "kind", None, None, kind, kinds[run.name][kind]) for kind in kinds[run.name]]

    def draw() -> "Canvas":
        canvas, axes = panels(2 if places else 1, height=2.7)
        for index, (run, _) in enumerate(shown):
            method = run.cell.method
            if places:
                drawn = {place: 100 * value for place, value in layers[run.name].items() if place is not None}
                _by_layer(axes[0], places, drawn, method)
            _by_kind(axes[-1], present, kinds[run.name], method, (index + 0.5) / len(shown) - 0.5)
        if places:
            _layer_axis(axes[0], places)
        axes[-1].set_xticks(range(len(present)), [kind.replace(" ", "\n") for kind in present])
        axes[-1].set_xlabel("kind of matrix")
        for axis in axes:
            axis.set_ylabel("density (%)")
            axis.set_ylim(0, 1.04 * axis.get_ylim()[1])
        legend(canvas, [(handle(run.cell.method), _named(run)) for run, _ in shown])
        return canvas

    flat = [run.cell.method for run, _ in shown if run.cell.selection == "local"]
    parts = [f"The share of weights that remains in each layer, and in each kind of matrix. {chosen.told}"]
    if flat:
        parts.append(f"Under local selection ({', '.join(flat)}) every matrix keeps the same share: flat.")
    if not places:
        parts.append("The matrices' names have no number of a layer.")
    found = [density for part in (layers, kinds) for run in part.values() for density in run.values()]
    sentence = ""
    if len(flat) == len(shown) and max(found) - min(found) <= _FLAT * max(found):
        same = f"Every matrix keeps {percent(max(found))} of its weights, since the selection is local."
        sentence = f"{same} {chosen.told}"
    header = ("run", "method", "scope", "by", "stack", "layer", "kind", "density")
    title = "Where the weights remain"
    return Figure("density-by-layer", title, " ".join(parts), header, data, draw, sentence)


def empty(runs: Sequence[RunFolder]) -> Figure | str:
    """Return the figure of the heads and neurons of each layer without any remaining weight."""
    chosen = chosen_runs.one_each(runs, chosen_runs.has_record, prefer_global=True)
    if chosen is None:
        return chosen_runs.without_record(runs)
    counted = [
        (run, remaining_units(run.record.matrices, run.config))
        for run in chosen.runs
        if run.record is not None
    ]
    heads = any(layer.heads for _, found in counted for layer in found)
    neurons = any(layer.neurons for _, found in counted for layer in found)
    if not (heads or neurons):
        return "neither heads nor neurons can be told from the names and shapes of the matrices"
    data: list[tuple[object, ...]] = [
        (run.name, run.cell.method, *layer) for run, found in counted for layer in found
    ]
    halves = [half for half, there in (("heads", heads), ("neurons", neurons)) if there]

    def draw() -> "Canvas":
        canvas, axes = panels(len(halves), height=2.5)
        for axis, half in zip(axes, halves, strict=True):
            shares = [(run, _empty_shares(found, half)) for run, found in counted]
            places = list(dict.fromkeys(place for _, share in shares for place in share))
            for run, share in shares:
                _by_layer(axis, places, share, run.cell.method)
            _layer_axis(axis, places)
            axis.set_ylabel(f"empty {half} (%)")
            top = max((value for _, share in shares for value in share.values()), default=0)
            axis.set_ylim(-0.03 * (top or 10), 1.1 * (top or 10))
        legend(canvas, [(handle(run.cell.method), _named(run)) for run, _ in counted])
        return canvas

    parts = [
        "A head is empty where none of its rows of V or none of its columns of O keeps a weight, a neuron "
        f"where its row of FFN in or its column of FFN out keeps none. {chosen.told}"
    ]
    if not heads:
        parts.append("Heads cannot be told from the model's configuration and matrices, and are left out.")
    if not neurons:
        parts.append("Neurons cannot be told from the matrices, and are left out.")
    none = [
        half[:-1]
        for half in halves
        if not any(value for _, found in counted for value in _empty_shares(found, half).values())
    ]
    parts += [f"No {unit} is empty." for unit in none]
    sentence = ""
    if len(none) == len(halves):
        sentence = f"No {' and no '.join(none)} is empty: each keeps a weight. {chosen.told}"
    header = ("run", "method", *LayerUnits._fields)
    return Figure("empty", "Empty heads and neurons", " ".join(parts), header, data, draw, sentence)


def _layer_of(name: str) -> _Layer | None:
    stack, layer, _ = place_of(name)
    return None if layer is None else (stack, layer)


def _densities(matrices: Sequence[MatrixSnapshot], key: Any) -> dict[Any, float]:
    """Return kept / all weights of the matrices of each key."""
    return {place: kept / total for place, (kept, total) in counts_by(matrices, key).items() if total}


def _empty_shares(found: Sequence[LayerUnits], half: str) -> dict[_Layer, float]:
    """Return the percentage of empty heads or neurons, of the layers where it is known."""
    shares = {}
    for layer in found:
        count, alive = getattr(layer, half), getattr(layer, f"{half}_left")
        if count:
            shares[layer.stack, layer.layer] = 100 * (count - alive) / count
    return shares


def _positions(places: Sequence[_Layer]) -> dict[_Layer, float]:
    """Return positions of layers side by side, with a gap between stacks."""
    stacks = list(dict.fromkeys(stack for stack, _ in places))
    found, start = {}, 0.0
    for stack in stacks:
        numbers = sorted(layer for name, layer in places if name == stack)
        for index, layer in enumerate(numbers):
            found[stack, layer] = start + index
        start += len(numbers) + _GAP
    return found


def _by_layer(axis: "Axes", places: Sequence[_Layer], values: dict[_Layer, float], method: str) -> None:
    """Draw a line for each stack."""
    where = _positions(places)
    color, marker, dash = style(method)
    for stack in dict.fromkeys(stack for stack, _ in places):
        points = sorted((where[place], value) for place, value in values.items() if place[0] == stack)
        if points:
            axis.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=dash)


def _layer_axis(axis: "Axes", places: Sequence[_Layer]) -> None:
    """Label layers with their numbers from 0, and the stacks if there are several."""
    where = _positions(places)
    step = max(1, -(-len(places) // 14))
    ticks = [(position, layer) for (_, layer), position in where.items() if layer % step == 0]
    axis.set_xticks([position for position, _ in ticks], [str(layer) for _, layer in ticks])
    axis.set_xlabel("layer")
    stacks = list(dict.fromkeys(stack for stack, _ in places))
    if len(stacks) < 2:
        return
    for stack, name in zip(stacks, _told_apart(stacks), strict=True):
        inside = [position for (other, _), position in where.items() if other == stack]
        axis.text(
            (min(inside) + max(inside)) / 2,
            1.01,
            short(name, 20),
            transform=axis.get_xaxis_transform(),
            ha="center",
            va="bottom",
        )
        if stack != stacks[0]:
            axis.axvline(min(inside) - (1 + _GAP) / 2, color=ink(), linewidth=0.6, alpha=0.5)


def _told_apart(stacks: Sequence[str]) -> list[str]:
    """Return the differing parts of stacks' names: encoder, decoder for encoder.block, decoder.block."""
    parts = [stack.split(".") for stack in stacks]
    while len({tuple(part[:1]) for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[1:] for part in parts]
    while len({tuple(part[-1:]) for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[:-1] for part in parts]
    return [".".join(part) for part in parts]


def _by_kind(
    axis: "Axes", present: Sequence[str], found: dict[Any, float], method: str, offset: float
) -> None:
    """Draw a dot on a stem for each kind of matrix."""
    color, marker, _ = style(method)
    points = [
        (index + 0.6 * offset, 100 * found[kind]) for index, kind in enumerate(present) if kind in found
    ]
    for x, y in points:
        axis.vlines(x, 0, y, color=color, linewidth=1.2)
        axis.plot(x, y, color=color, marker=marker, linestyle="none")


def _named(run: RunFolder) -> str:
    return f"{run.cell.method} ({run.cell.selection})"
