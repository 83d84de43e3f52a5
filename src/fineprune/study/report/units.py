"""Make the picture of a shrunk model: the heads and neurons of each layer, and its operations."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fineprune.study.report.formatting import percent


class UnitLayer(NamedTuple):
    """One layer of the picture; of a half that is not there, the text is empty."""

    label: str
    heads: list[bool]
    """Whether each head of the original model is left."""

    heads_text: str
    neurons: float
    """The share of the neurons that is left."""

    neurons_text: str


class Units(NamedTuple):
    """The heads and neurons that are left of a model."""

    layers: list[UnitLayer]
    sentence: str


def units_of(results: Mapping[str, Any] | None) -> Units | None:
    """Return the picture of a run whose heads or neurons were removed; None for any other."""
    shrunk = (results or {}).get("shrunk")
    if not isinstance(shrunk, dict) or "layers" not in shrunk:
        return None
    stacks = {layer["stack"] for layer in shrunk["layers"]}
    layers = [_layer(layer, len(stacks) > 1) for layer in shrunk["layers"]]
    totals = []
    for what in ("heads", "neurons"):
        kept, every = (sum(layer[name] for layer in shrunk["layers"]) for name in (f"{what}_left", what))
        totals += [f"{kept:,} of {every:,} {what}"] if every else []
    before, after = shrunk["flops"]
    sentence = (
        f"{' and '.join(totals)} are left. A text of 128 tokens takes {after / 1e9:.3g} GFLOPs, "
        f"{percent(after / before)} of the original model's {before / 1e9:.3g}."
    )
    return Units(layers, sentence)


def _layer(layer: Mapping[str, Any], several: bool) -> UnitLayer:
    heads, neurons = layer["heads"], layer["neurons"]
    living = set(layer["living_heads"])
    return UnitLayer(
        f"{layer['stack']} {layer['layer']}" if several else str(layer["layer"]),
        [head in living for head in range(heads)],
        f"{layer['heads_left']:,} of {heads:,}" if heads else "",
        layer["neurons_left"] / neurons if neurons else 0.0,
        f"{layer['neurons_left']:,} of {neurons:,}" if neurons else "",
    )
