"""Describe a model for `fineprune inspect`: what remains of each layer, and its size."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fineprune._messages import one_line
from fineprune.inference.bench import BENCH
from fineprune.training.run.results import fastest, packed_of, read_results, timings_of, weight_bytes
from fineprune_runtime.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from fineprune.pruning.dead_units import LayerUnits
    from fineprune.pruning.origin import Origin
    from fineprune.pruning.summary import Summary
    from fineprune.training.run.mask_snapshot import MatrixSnapshot

_Place = tuple[str, int]
"""The name in front of a layer's number, and the number."""


@dataclass(frozen=True)
class LayerDensity:
    """One layer, all of its matrices together, and which of its heads and neurons keep a weight."""

    stack: str
    layer: int | None
    """None: matrices whose names have no number."""

    kept: int
    total: int
    """All weights, of a shrunk or low-rank model those of the original."""

    heads: int | None
    """None where they cannot be determined."""

    heads_left: int | None
    neurons: int | None
    neurons_left: int | None
    living_heads: tuple[int, ...] | None = None
    """The numbers of the heads that are left, in the original model; None as for `heads`."""

    @property
    def density(self) -> float:
        """Kept / total."""
        return self.kept / self.total


class Latency(NamedTuple):
    """The engine's fastest time measured by `fineprune bench`; another runtime's if the engine has none."""

    milliseconds: float
    ratio: float
    """Times the speed of torch with the same weights."""

    peer: str
    batch: int
    length: int
    threads: int
    processor: str

    def __str__(self) -> str:
        size = f"{self.batch} x {self.length} tokens"
        where = f"{self.threads} thread{'' if self.threads == 1 else 's'} of {self.processor}"
        return f"{self.milliseconds:.2f} ms, {self.ratio:.2f} x torch's speed ({self.peer}, {size}, {where})"


class Flops(NamedTuple):
    """The floating-point operations of a model's blocks for one text."""

    length: int
    """Tokens of the text."""

    original: int
    """Of the model before its matrices were made smaller."""

    stored: int
    """Of the model as it is stored, in a runtime that multiplies by zeros too."""

    nonzero: int
    """In a runtime that leaves out zeros and empty heads."""

    def __str__(self) -> str:
        shares = [f"{self.stored / 1e9:.3g} GFLOPs for a text of {self.length} tokens"]
        if self.stored < self.original:
            share = f"{self.stored / self.original:.1%} of the {self.original / 1e9:.3g}"
            shares.append(f"{share} before its matrices were made smaller")
        if self.nonzero < self.stored:
            shares.append(f"{self.nonzero / 1e9:.3g} without those by zeros")
        return ", ".join(shares)


@dataclass(frozen=True)
class Inspection:
    """Everything that `fineprune inspect` reports about a folder."""

    name: str
    stats: "Summary"
    layers: tuple[LayerDensity, ...]
    bytes: int
    """Of the weights on disk."""

    packed: bool
    results: dict[str, Any] | None
    """`results.json`, where the folder is that of a run."""

    latency: Latency | None
    no_latency: str | None
    """The reason, where there is a measurement that does not count."""

    flops: Flops

    @property
    def shrunk(self) -> bool:
        """Whether the original had more weights: heads or neurons were removed, or its matrices made thin."""
        return self.total > self.stats.total

    @property
    def total(self) -> int:
        """All weights of the pruned matrices, of a shrunk or low-rank model those of the original."""
        return sum(layer.total for layer in self.layers)

    @property
    def density(self) -> float:
        """The share of these weights that is not zero."""
        return self.stats.kept / self.total

    @property
    def packed_bytes(self) -> dict[str, int] | None:
        """The size of the packed model by the type of the values; None if the results do not have it."""
        return packed_of(self.results or {}) or None

    @property
    def warnings(self) -> list[str]:
        """What the run was warned of."""
        return list((self.results or {}).get("warnings") or [])

    @property
    def line(self) -> str:
        """A one-line summary to paste: weights kept and in all, the bytes, and the time of an answer."""
        outside = self.stats.parameters - self.stats.total
        left, every = outside + self.stats.kept, outside + self.total
        weights = f"{self.stats.kept:,} of {self.total:,} weights kept ({self.density:.2%})"
        share = f"{left:,} of all {every:,} parameters ({left / every:.2%})"
        time = "not measured" if self.latency is None else str(self.latency)
        if self.no_latency is not None:
            time += f" ({self.no_latency})"
        return f"{self.name}: {weights}, {share}; {self.bytes / 1e6:.1f} MB on disk; latency: {time}"

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `--json` prints."""
        stats = self.stats
        return {
            "density": self.density,
            "kept": stats.kept,
            "total": self.total,
            "parameters": stats.parameters,
            "bytes": self.bytes,
            "packed": self.packed,
            "packed_bytes": self.packed_bytes,
            "flops": self.flops._asdict(),
            "latency": None if self.latency is None else self.latency._asdict(),
            "scores": None if self.results is None else self.results["scores"],
            "warnings": self.warnings,
            "line": self.line,
            "blocks": [asdict(layer) | {"density": layer.density} for layer in self.layers],
            "layers": [layer._asdict() | {"density": layer.density} for layer in stats.layers],
        }


def inspect_folder(folder: Path) -> Inspection:
    """Read the model of a run or model folder.

    Raises:
        FinepruneError: if the folder holds no model.
    """
    from fineprune.checkpoint.loading import open_model
    from fineprune.pruning.dead_units import remaining_heads, remaining_units
    from fineprune.pruning.layout import settings_of
    from fineprune.pruning.low_rank import whole_sizes
    from fineprune.pruning.origin import origin_of
    from fineprune.pruning.summary import summary
    from fineprune.training.run.mask_snapshot import matrices_of

    results = _results(folder / "results.json")
    opened = open_model(folder)
    model, place = opened.model, Path(opened.place)
    matrices, settings, origin = matrices_of(model), settings_of(model), origin_of(model)
    whole = whole_sizes(model)
    units, living = remaining_units(matrices, settings), remaining_heads(matrices, settings)
    if origin is not None:
        units, living = _of_original(units, living, origin)
    size = weight_bytes(place) or 0
    latency, why = _latency(folder / BENCH, size)
    return Inspection(
        name=folder.resolve().name,
        stats=summary(model),
        layers=_layers(matrices, units, living, origin, whole),
        bytes=size,
        packed=(place / "fineprune.json").is_file(),
        results=results,
        latency=latency,
        no_latency=why,
        flops=_flops(model, origin, whole),
    )


def _of_original(
    layers: "list[LayerUnits]", living: "Mapping[_Place, tuple[int, ...]]", origin: "Origin"
) -> "tuple[list[LayerUnits], dict[_Place, tuple[int, ...]]]":
    """Return the counts of a shrunk model's units, and its heads, as parts of those of the original model."""
    units = [
        layer._replace(
            heads=sum(kept.of for kept in origin.heads if (kept.stack, kept.layer) == layer[:2]),
            neurons=sum(kept.of for kept in origin.neurons if (kept.stack, kept.layer) == layer[:2]),
        )
        for layer in layers
    ]
    numbers: dict[_Place, list[int]] = {}
    before: dict[_Place, int] = {}
    for kept in origin.heads:
        place = (kept.stack, kept.layer)
        numbers.setdefault(place, []).extend(before.get(place, 0) + unit for unit in kept.units)
        before[place] = before.get(place, 0) + kept.of
    return units, {place: tuple(numbers[place][head] for head in heads) for place, heads in living.items()}


def _sizes(origin: "Origin | None") -> dict[tuple[str, int | None, str], tuple[int, int]]:
    """Return how many heads or neurons the original had, and the model has, by stack, layer and half."""
    halves = () if origin is None else (("attention", origin.heads), ("feed-forward", origin.neurons))
    sizes: dict[tuple[str, int | None, str], tuple[int, int]] = {}
    for half, entries in halves:
        for kept in entries:
            had, has = sizes.get((kept.stack, kept.layer, half), (0, 0))
            sizes[kept.stack, kept.layer, half] = had + kept.of, has + len(kept.units)
    return sizes


def _flops(model: "nn.Module", origin: "Origin | None", whole: "Mapping[str, int]") -> Flops:
    """Return the cost of a model; the original's follows from its heads, neurons and matrices."""
    from fineprune.pruning.costs import costs

    found, sizes = costs(model), _sizes(origin)
    thin = sum(model.get_submodule(name).get_parameter("weight").numel() for name in whole)
    original = found.length * (sum(whole.values()) - thin)
    for cost in found.halves:
        had, has = sizes.get((cost.stack, cost.layer, cost.half), (1, 1))
        original += cost.multiply_adds * had // has
    return Flops(found.length, 2 * original, 2 * found.multiply_adds, 2 * found.nonzero_multiply_adds)


def _layers(
    matrices: "tuple[MatrixSnapshot, ...]",
    structure: "list[LayerUnits]",
    living: "Mapping[_Place, tuple[int, ...]]",
    origin: "Origin | None",
    whole: "Mapping[str, int]",
) -> tuple[LayerDensity, ...]:
    """Return the matrices by layer, in the model's order; those without a number last.

    `whole` has the weights that thin matrices stand for, by name.
    """
    from fineprune.pruning.anatomy import place_of
    from fineprune.pruning.costs import half_of

    sizes = _sizes(origin)
    counts: dict[tuple[str, int | None], tuple[int, int]] = {}
    for matrix in matrices:
        stack, layer, kind = place_of(matrix.name)
        place = ("", None) if layer is None else (stack, layer)
        had, has = sizes.get((stack, layer, half_of(kind)), (1, 1))
        kept, total = counts.get(place, (0, 0))
        size = whole.get(matrix.name, matrix.shape[0] * matrix.shape[1])
        counts[place] = kept + matrix.kept, total + size * had // has
    units = {(entry.stack, entry.layer): entry for entry in structure}
    layers = []
    for (stack, layer), (kept, total) in counts.items():
        parts: dict[str, int | None] = dict.fromkeys(("heads", "heads_left", "neurons", "neurons_left"))
        entry = units.get((stack, layer)) if layer is not None else None
        heads = living.get((stack, layer)) if layer is not None else None
        for what in ("heads", "neurons"):
            if entry is not None and getattr(entry, what):
                parts |= {name: getattr(entry, name) for name in (what, f"{what}_left")}
        layers.append(LayerDensity(stack, layer, kept, total, **parts, living_heads=heads))
    return tuple(sorted(layers, key=lambda entry: entry.layer is None))


def _results(path: Path) -> dict[str, Any] | None:
    """Return the content of results.json; None if the file does not exist."""
    try:
        return read_results(path)
    except FileNotFoundError:
        return None


def headline_of(results: dict[str, Any]) -> str:
    """Return one line about a finished run: the score, the density, the steps and the seconds."""
    kept = f"{results['density']:.2%} of {results['total']:,} weights in the pruned matrices"
    learned = "; it always gives the same answer, so it learned nothing" if results.get("constant") else ""
    return (
        f"{results['metric']} {results['score']:.2%} with {kept}, "
        f"after {results['steps']:,} steps in {results['seconds']:.0f} s{learned}"
    )


def planned_time(results: dict[str, Any]) -> list[str]:
    """Return one line about the time that a run planned and then measured; none without such a budget."""
    about = results.get("latency")
    if not about:
        return []
    where = "{runtime}, {batch} x {length} tokens, {threads} threads of {processor}".format(**about)
    dense, planned, measured = (about[name] for name in ("dense_ms", "planned", "measured"))
    found = "not measured" if measured is None else f"measured {measured:.1%} ({measured * dense:.2f} ms)"
    asked = f"asked for {about['asked']:.1%} of the dense model's {dense:.2f} ms"
    return [f"time: {asked}, planned {planned:.1%}, {found}; {where}"]


def _latency(path: Path, size: int) -> tuple[Latency | None, str | None]:
    """Return the time from a bench of these weights with right answers, or the reason why there is none."""
    if not path.is_file():
        return None, None
    try:
        bench = read_json(path)
    except (OSError, ValueError) as error:
        return None, f"{path.name} cannot be read: {one_line(error)}"
    rows, why = timings_of(bench, size)
    if not rows:
        return None, why
    best = fastest(rows) or min(rows, key=lambda row: row.milliseconds)
    about = (best.batch, best.length, best.threads, best.processor)
    return Latency(best.milliseconds, best.ratio, best.peer, *about), None
