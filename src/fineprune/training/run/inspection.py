"""Describe a model for `fineprune inspect`: what remains of each layer, and its size."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fineprune._messages import one_line
from fineprune.inference.bench import BENCH
from fineprune.training.run.results import fastest, packed_of, read_results, timings_of, weight_bytes
from fineprune_runtime.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from fineprune.pruning.dead_units import LayerUnits
    from fineprune.pruning.origin import Kept
    from fineprune.pruning.summary import Summary
    from fineprune.training.run.mask_snapshot import MatrixSnapshot

_TERMINAL = 80
_WIDTH = 32  # of the longest bar, where the terminal has room for it
_BLOCKS = " ▏▎▍▌▋▊▉█"  # by eighths


@dataclass(frozen=True)
class LayerDensity:
    """One layer, all of its matrices together, and which of its heads and neurons keep a weight."""

    stack: str
    layer: int | None
    """None: matrices whose names have no number."""

    kept: int
    total: int
    heads: int | None
    """None where they cannot be determined."""

    heads_left: int | None
    neurons: int | None
    neurons_left: int | None

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
        stats = self.stats
        parameters = stats.parameters - stats.total + stats.kept
        weights = f"{stats.kept:,} of {stats.total:,} weights kept ({stats.density:.2%})"
        share = f"{parameters:,} of all {stats.parameters:,} parameters ({parameters / stats.parameters:.2%})"
        time = "not measured" if self.latency is None else str(self.latency)
        if self.no_latency is not None:
            time += f" ({self.no_latency})"
        return f"{self.name}: {weights}, {share}; {self.bytes / 1e6:.1f} MB on disk; latency: {time}"

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `--json` prints."""
        stats = self.stats
        return {
            "density": stats.density,
            "kept": stats.kept,
            "total": stats.total,
            "parameters": stats.parameters,
            "bytes": self.bytes,
            "packed": self.packed,
            "packed_bytes": self.packed_bytes,
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
    from fineprune.pruning.dead_units import remaining_units
    from fineprune.pruning.layout import settings_of
    from fineprune.pruning.summary import summary
    from fineprune.training.run.mask_snapshot import matrices_of

    results = _results(folder / "results.json")
    opened = open_model(folder)
    model, place = opened.model, Path(opened.place)
    matrices = matrices_of(model)
    size = weight_bytes(place) or 0
    latency, why = _latency(folder / BENCH, size)
    return Inspection(
        name=folder.resolve().name,
        stats=summary(model),
        layers=_layers(matrices, _of_original(remaining_units(matrices, settings_of(model)), model)),
        bytes=size,
        packed=(place / "fineprune.json").is_file(),
        results=results,
        latency=latency,
        no_latency=why,
    )


def bars(layers: tuple[LayerDensity, ...], blocks: bool = True) -> list[str]:
    """Return a line for each layer: its density as a bar, full for the densest, and its remaining units.

    Without `blocks` the bars are made of #, for a terminal that cannot show others.
    """
    stacks = {layer.stack for layer in layers if layer.layer is not None}
    names = ["layer", *(_name(layer, len(stacks) > 1) for layer in layers)]
    shares = ["density", *(f"{layer.density:.2%}" for layer in layers)]
    beside = []
    for what, title in (("heads", "heads left"), ("neurons", "FFN neurons left")):
        remaining = [_remaining(layer, what) for layer in layers]
        if any(remaining):
            beside.append([title, *(text or "-" for text in remaining)])
    names, shares, *beside = (
        [text.rjust(max(map(len, column))) for text in column] for column in (names, shares, *beside)
    )
    used = sum(len(column[0]) + 2 for column in (names, shares, *beside))
    width = min(_WIDTH, max(_WIDTH // 4, _TERMINAL - used))
    most = max(layer.density for layer in layers)
    drawn = ["", *(_bar(layer.density / most if most else 0.0, width, blocks) for layer in layers)]
    columns = (names, [bar.ljust(width) for bar in drawn], shares, *beside)
    return ["  ".join(line) for line in zip(*columns, strict=True)]


def _bar(share: float, width: int, blocks: bool) -> str:
    """Return a bar of that share of the width; any share above 0 is visible."""
    if not blocks:
        return "#" * (max(1, round(share * width)) if share else 0)
    eighths = max(1, round(share * width * 8)) if share else 0
    return (_BLOCKS[8] * (eighths // 8) + _BLOCKS[eighths % 8]).rstrip()


def _name(layer: LayerDensity, several: bool) -> str:
    number = "other" if layer.layer is None else str(layer.layer)
    return f"{layer.stack} {number}".strip() if several else number


def _remaining(layer: LayerDensity, what: str) -> str:
    """Return text such as "11 of 12"; empty where the number is unknown."""
    count, remaining = getattr(layer, what), getattr(layer, f"{what}_left")
    return "" if count is None else f"{remaining:,} of {count:,}"


def _of_original(layers: "list[LayerUnits]", model: "nn.Module") -> "list[LayerUnits]":
    """Return the counts of a shrunk model's units as parts of those that the original model had."""
    from fineprune.pruning.origin import origin_of

    origin = origin_of(model)
    if origin is None:
        return layers

    def had(halves: "Iterable[Kept]", layer: "LayerUnits") -> int:
        return sum(kept.of for kept in halves if (kept.stack, kept.layer) == (layer.stack, layer.layer))

    return [
        layer._replace(heads=had(origin.heads, layer), neurons=had(origin.neurons, layer)) for layer in layers
    ]


def _layers(
    matrices: "tuple[MatrixSnapshot, ...]", structure: "list[LayerUnits]"
) -> tuple[LayerDensity, ...]:
    """Return the matrices by layer, in the model's order; those without a number last."""
    from fineprune.pruning.anatomy import place_of
    from fineprune.training.run.mask_snapshot import counts_by

    def layer_of(name: str) -> tuple[str, int | None]:
        stack, layer, _ = place_of(name)
        return ("", None) if layer is None else (stack, layer)

    units = {(entry.stack, entry.layer): entry for entry in structure}
    layers = []
    for (stack, layer), (kept, total) in counts_by(matrices, layer_of).items():
        parts: dict[str, int | None] = dict.fromkeys(("heads", "heads_left", "neurons", "neurons_left"))
        entry = units.get((stack, layer)) if layer is not None else None
        for what in ("heads", "neurons"):
            if entry is not None and getattr(entry, what):
                parts |= {name: getattr(entry, name) for name in (what, f"{what}_left")}
        layers.append(LayerDensity(stack, layer, kept, total, **parts))
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
