"""Record which heads and neurons of the original model a shrunk one has."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn

from fineprune.pruning.anatomy import Attention, Block, FeedForward
from fineprune.pruning.resizing import Cut

_ATTRIBUTE = "_fineprune_origin"
_LISTENERS: list[Callable[[nn.Module], None]] = []


class Kept(NamedTuple):
    """The units that an attention or a feed-forward keeps.

    Attributes:
        name: The dotted name of the half.
        stack: The name in front of the layer's number.
        layer: From 0; None where there is no number.
        units: The heads or neurons that remain, by their numbers in the original model, in order.
        zeros: Those of `units` that have no weights, and remain for the width alone.
        of: The number of units in the original model.
    """

    name: str
    stack: str
    layer: int
    units: tuple[int, ...]
    zeros: tuple[int, ...]
    of: int

    def __str__(self) -> str:
        zero = f" ({len(self.zeros):,} more kept, zero)" if self.zeros else ""
        return f"{len(self.units) - len(self.zeros):,} of {self.of:,}{zero}"


@dataclass(frozen=True)
class Origin:
    """What a shrunk model was cut from, for those that save it and report on it.

    Attributes:
        heads: The heads of each attention; a group of heads that share K and V counts each of them.
        neurons: The neurons of each feed-forward.
        ordinary: Whether the model's class has these shapes under its (edited) configuration.
    """

    heads: tuple[Kept, ...]
    neurons: tuple[Kept, ...]
    ordinary: bool


def origin_of(model: nn.Module) -> Origin | None:
    """Return the record of a shrunk model; None for a model that has its original sizes."""
    found: Origin | None = getattr(model, _ATTRIBUTE, None)
    return found


def record(model: nn.Module, origin: Origin | None) -> None:
    """Record on a model what it was cut from; None: nothing, it has its original sizes.

    Its parts that can be saved alone, such as the encoder, get a record of their own.
    """
    for name, part in model.named_modules():
        found = origin
        if name:
            if not hasattr(part, "save_pretrained"):
                continue
            found = None if origin is None else _of_part(origin, f"{name}.", part, model)
            if origin is not None and found is None:
                continue
        setattr(part, _ATTRIBUTE, found)
        for listener in _LISTENERS:
            listener(part)


def _of_part(origin: Origin, prefix: str, part: nn.Module, model: nn.Module) -> Origin | None:
    """Return the record of a part of a model, by its own names; None if it has no heads or neurons."""
    heads, neurons = (
        tuple(
            kept._replace(name=kept.name.removeprefix(prefix), stack=kept.stack.removeprefix(prefix))
            for kept in halves
            if kept.name.startswith(prefix)
        )
        for halves in (origin.heads, origin.neurons)
    )
    if not heads + neurons:
        return None
    if getattr(part, "config", None) is getattr(model, "config", model):
        return Origin(heads, neurons, origin.ordinary)
    # A configuration of its own has the original sizes still.
    return Origin(heads, neurons, all(len(kept.units) == kept.of for kept in heads + neurons))


def on_record(listener: Callable[[nn.Module], None]) -> None:
    """Let a function see each model that gets a record: it decides how the model is saved."""
    _LISTENERS.append(listener)


def remaining(model: nn.Module, blocks: Iterable[Block], made: Sequence[Cut], ordinary: bool) -> Origin:
    """Return which units remain after some cuts, by the numbers of the model that was shrunk first.

    Args:
        model: the model.
        blocks: its layout before the cuts.
        made: the cuts.
        ordinary: whether its class has its shapes after the cuts.
    """
    earlier = origin_of(model)
    cuts = {cut.half.name: cut for cut in made}
    heads, neurons = [], []
    for block in blocks:
        for attention in block.attentions:
            shared = attention.sizes.heads // attention.sizes.groups
            heads.append(_kept(block, attention, cuts, shared, earlier.heads if earlier else ()))
        for forward in block.feed_forwards:
            neurons.append(_kept(block, forward, cuts, 1, earlier.neurons if earlier else ()))
    if not made:
        ordinary = earlier is None or earlier.ordinary
    return Origin(tuple(heads), tuple(neurons), ordinary)


def _kept(
    block: Block,
    half: Attention | FeedForward,
    cuts: Mapping[str, Cut],
    shared: int,
    earlier: Iterable[Kept],
) -> Kept:
    """Return the units of one half; `shared` is the number of heads that go together."""
    total = half.sizes.heads if isinstance(half, Attention) else half.neurons
    before = next((kept for kept in earlier if kept.name == half.name and len(kept.units) == total), None)
    numbers = np.array(before.units if before else range(total))
    zeros = set(before.zeros if before else ())
    cut = cuts.get(half.name)
    if cut is not None:
        of_group = numbers.reshape(-1, shared)
        numbers, zeros = of_group[cut.kept].ravel(), set(of_group[cut.zeros].ravel().tolist())
    return Kept(
        half.name,
        block.stack,
        block.layer,
        tuple(numbers.tolist()),
        tuple(sorted(zeros)),
        before.of if before else total,
    )
