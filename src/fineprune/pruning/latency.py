"""Plan by measured time: a table of milliseconds by heads and neurons, and what each unit costs by it.

One half of a layer with k of its units takes T(k) = a + s·max(k - knee, 0) for k > 0, and T(0) = 0: a and
s by least squares, the knee where small halves take no longer than smaller ones. T counts from what `shrink`
leaves of an empty half, so that the times of a model and of its halves add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from torch import nn

from fineprune._files import write_json
from fineprune._messages import differences
from fineprune._validation import is_number, shown
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.anatomy import Block
from fineprune.pruning.layout import layout_of
from fineprune.pruning.units import Grid
from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import read_json

FORMAT = 1
Times = Mapping[int, float]
"""Milliseconds of one half of a layer by the number of its units, from 0 to all of them."""


class Shape(NamedTuple):
    """The sizes of a model whose layers are alike."""

    hidden: int
    layers: int
    heads: int
    groups: int
    """Heads of K and V: the units of an attention."""
    head_size: int
    neurons: int


class Fit(NamedTuple):
    """T(k), the milliseconds of one half of a layer with k units."""

    fixed: float
    each: float
    knee: int

    def __call__(self, units: int) -> float:
        """Return T(units)."""
        return self.fixed + self.each * max(units - self.knee, 0) if units > 0 else 0.0

    def steps(self, units: int) -> tuple[float, ...]:
        """Return what the first, second, … of some units adds."""
        return tuple(self(count + 1) - self(count) for count in range(units))


def fit(times: Times) -> Fit:
    """Return the curve nearest to some times, by least squares; neither part of it is negative."""
    widths = np.array(sorted(width for width in times if width > 0))
    ms = np.array([times[int(width)] - times[0] for width in widths])
    found: list[tuple[float, Fit]] = []
    for knee in [0, *widths[:-2].tolist()]:
        above = np.maximum(widths - knee, 0).astype(np.float64)
        slope = float(np.cov(above, ms, bias=True)[0, 1] / max(above.var(), 1e-12))
        fixed = float(ms.mean() - slope * above.mean())
        if fixed < 0:
            fixed, slope = 0.0, float(above @ ms / max(above @ above, 1e-12))
        if slope < 0:
            fixed, slope = max(float(ms.mean()), 0.0), 0.0
        error = float(np.square(fixed + slope * above - ms).sum())
        found.append((round(error, 12), Fit(fixed, slope, knee)))
    return min(found, key=lambda entry: (entry[0], entry[1].knee))[1]


@dataclass(frozen=True)
class LatencyTable:
    """Measured times of one model's layers at fewer heads and neurons, in one runtime on one machine.

    Attributes:
        runtime: The name of the runtime and of the type that it computes in, as `fineprune bench` has it.
        processor: Its name.
        threads: Threads of the runtime.
        batch: Texts at once.
        length: Tokens of a text.
        round_to: The widths of feed-forwards are multiples of it.
        shape: The sizes of the dense model.
        dense_ms: Milliseconds of the whole dense model.
        attention: Of one attention, by the number of groups of heads; empty if it cannot lose any.
        feed_forward: Of one feed-forward, by the number of neurons.
        versions: Of the packages.
    """

    runtime: str
    processor: str
    threads: int
    batch: int
    length: int
    round_to: int
    shape: Shape
    dense_ms: float
    attention: Times
    feed_forward: Times
    versions: Mapping[str, str]

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        write_json(path, {"format": FORMAT} | asdict(self) | {"shape": self.shape._asdict()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FinepruneError: The file is missing, or is no such table.
        """
        try:
            values = read_json(path)
        except (OSError, EngineError) as error:
            raise FinepruneError(
                f"latency_table: {path}: cannot be read ({error}); fineprune bench DIR --table writes one"
            ) from error
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"format {shown(values['format'])}")
            given = {field.name: values[field.name] for field in fields(cls)}
            halves = {name: _times(given[name]) for name in ("attention", "feed_forward")}
            table = cls(**given | halves | {"shape": Shape(**given["shape"])})
            table.check_values()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FinepruneError(
                f"latency_table: {path}: is no table of times ({type(error).__name__}: {error}); "
                "fineprune bench DIR --table writes one"
            ) from error
        return table

    def check_values(self) -> None:
        """Raise `ValueError` for values that make no sense, as those of a busy machine may."""
        counts = (self.threads, self.batch, self.length, self.round_to, *self.shape)
        if not all(type(count) is int and count > 0 for count in counts):
            raise ValueError("a number of threads, texts, tokens or units that is no whole number above 0")
        if not is_number(self.dense_ms) or self.dense_ms <= 0:
            raise ValueError(f"dense_ms {shown(self.dense_ms)}")
        for times, units in ((self.attention, self.shape.groups), (self.feed_forward, self.shape.neurons)):
            if times and (not {0, units} <= set(times) or max(times) > units or len(times) < 3):
                raise ValueError(f"times of {min(times)} to {max(times)} units, and not of 0 to {units}")
        if not (self.attention or self.feed_forward):
            raise ValueError("times of neither heads nor neurons")
        if self.rest_ms <= 0:
            layers = self.dense_ms - self.rest_ms
            raise ValueError(
                f"the layers alone take {layers:.3g} of the model's {self.dense_ms:.3g} ms, so other work "
                "ran beside: measure again on an idle machine, with more --rounds"
            )

    @cached_property
    def fits(self) -> dict[str, Fit]:
        """The curve of each half that has times, by the name of the part."""
        parts = {"attention": self.attention, "feed_forward": self.feed_forward}
        return {name: fit(times) for name, times in parts.items() if times}

    @cached_property
    def rest_ms(self) -> float:
        """Milliseconds that no head or neuron takes: embeddings, norms, the task's head."""
        full = {"attention": self.shape.groups, "feed_forward": self.shape.neurons}
        return self.dense_ms - self.shape.layers * sum(curve(full[name]) for name, curve in self.fits.items())

    def planned_ms(self, model: nn.Module) -> float:
        """Return the milliseconds that a model of fewer heads and neurons should take by the table."""
        none = Fit(0.0, 0.0, 0)
        attention, forward = (self.fits.get(name, none) for name in ("attention", "feed_forward"))
        total = self.rest_ms
        for block in layout_of(model):
            total += sum(attention(half.sizes.groups) for half in block.attentions)
            total += sum(forward(half.neurons) for half in block.feed_forwards)
        return total

    def check(self, model: nn.Module, length: int) -> None:
        """Raise `FinepruneError` if the table is of another shape or length than a model and its budget."""
        here = {"shape": shape_of(model)._asdict(), "length": length}
        told = differences({"shape": self.shape._asdict(), "length": self.length}, here)
        if told:
            raise FinepruneError(
                f"latency_table: is of another model or length ({'; '.join(told)}); measure one with "
                "fineprune bench DIR --table --length N, and give budget_length=N"
            )

    def check_machine(self, processor: str, threads: int) -> None:
        """Raise `FinepruneError` if the table was measured on another processor, or with other threads."""
        here = {"processor": processor, "threads": threads}
        told = differences({"processor": self.processor, "threads": self.threads}, here)
        if told:
            raise FinepruneError(f"the table of times is of another machine ({'; '.join(told)})")


def shape_of(model: nn.Module) -> Shape:
    """Return the sizes of a model.

    Raises:
        FinepruneError: Its layers are not alike, or their heads and neurons cannot be told.
    """
    layers: list[Block] = layout_of(model)
    found = {
        (*(half.sizes for half in layer.attentions), *(half.neurons for half in layer.feed_forwards))
        for layer in layers
    }
    if len(found) != 1 or len(layers[0].attentions) != 1 or len(layers[0].feed_forwards) != 1:
        raise FinepruneError(
            f"{type(model).__name__}: a table of times is of models whose layers have one attention and one "
            "feed-forward each, all of the same sizes, before anything is removed"
        )
    config: Any = getattr(model, "config", None)
    hidden = getattr(config, "hidden_size", 0) or 0
    heads, groups, size = layers[0].attentions[0].sizes
    return Shape(hidden, len(layers), heads, groups, size, layers[0].feed_forwards[0].neurons)


def timed(
    grids: Mapping[str, Grid], table: LatencyTable, model: nn.Module, config: PruningConfig
) -> dict[str, Grid]:
    """Return grids whose units cost the milliseconds of a table.

    Raises:
        FinepruneError: The table is of another shape or length, has no times of a part, or the density is
            less than the share of the dense time that remains without any unit.
    """
    table.check(model, config.budget_length)
    found = {}
    for name, grid in grids.items():
        if grid.part not in table.fits:
            raise FinepruneError(
                f"structure.{grid.part}: the table of times has none of it, since no {grid.kind} of this "
                "model can be removed; leave the part out"
            )
        curve = table.fits[grid.part]
        full = table.shape.groups if grid.part == "attention" else table.shape.neurons
        steps = curve.steps(full) if grid.shape[0] == full else (curve(full),)
        found[name] = replace(grid, times=steps, dense_ms=table.dense_ms)
    least = share_of_time(list(found.values()), [0] * len(found))
    if config.density <= least:
        raise FinepruneError(
            f"density={config.density:g}: without any of its units the model still takes {least:.1%} of the "
            f"{table.dense_ms:.3g} ms of the dense one in {table.runtime}; give more than that"
        )
    return found


def share_of_units(grids: Sequence[Grid], density: float) -> float:
    """Return the share of the units' time with which the model takes the share `density` of the dense time.

    Where latency is not the budget, this is the density.
    """
    if not grids[0].times:
        return density
    return 1 - (1 - density) * grids[0].dense_ms / sum(sum(grid.times) for grid in grids)


def share_of_time(grids: Sequence[Grid], kept: Sequence[int]) -> float:
    """Return the planned share of the dense time with some units of each grid."""
    gone = sum(sum(grid.times[count:]) for grid, count in zip(grids, kept, strict=True))
    return 1 - gone / grids[0].dense_ms


def _times(values: Any) -> dict[int, float]:
    found = {int(units): value for units, value in values.items()}
    if not all(is_number(value) and value >= 0 for value in found.values()):
        raise ValueError("a time that is no number of milliseconds")
    return found
