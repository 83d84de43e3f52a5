"""Remove empty heads and neurons from a live model, and prove that it answers as before.

Names and shapes propose which lines belong to a unit; whether they do is decided by comparing the answers and
hidden states of the smaller model with those of the model before.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fineprune._messages import one_line
from fineprune.errors import FinepruneError
from fineprune.pruning.adapters import adapted_layers
from fineprune.pruning.anatomy import Block, FeedForward
from fineprune.pruning.costs import LENGTH, costs
from fineprune.pruning.distributed.ranks import is_sharded
from fineprune.pruning.empty_units import activation_of, empty_heads, empty_neurons
from fineprune.pruning.finalizing import masked_modules
from fineprune.pruning.layout import layout_of
from fineprune.pruning.ordinary import Edits
from fineprune.pruning.origin import Origin, record, remaining
from fineprune.pruning.probe import in_float32
from fineprune.pruning.proof import TOLERANCE, Half, Proof
from fineprune.pruning.resizing import Cut, Resizing, Units, by_matrix
from fineprune.pruning.targets import (
    check_module,
    find_targets,
    refuse_accelerated,
    refuse_compiled,
    refuse_meta,
    refuse_quantized,
)
from fineprune.pruning.wrapped import transformer_of


@dataclass(frozen=True)
class Shrunk(Origin):
    """What `shrink` did; prints as a table with a line for each half of a layer.

    Attributes:
        parameters: All parameters of the model, before and after.
        flops: Floating-point operations for a text of 128 tokens, before and after.
        difference: The largest relative difference of an answer or a hidden state on the probe.
        refused: Why units that are empty were not removed, a line for each part of the model.
    """

    parameters: tuple[int, int]
    flops: tuple[int, int]
    difference: float
    refused: tuple[str, ...]

    def __str__(self) -> str:
        width = max(len(kept.name) for kept in self.heads + self.neurons)
        lines = [f"{kept.name:{width}}  {kept} heads" for kept in self.heads]
        lines += [f"{kept.name:{width}}  {kept} neurons" for kept in self.neurons]
        for what, (before, after) in (("parameters", self.parameters), ("FLOPs", self.flops)):
            lines.append(f"{what}: {before:,} before, {after:,} after ({after / max(before, 1):.1%})")
        lines.append(f"largest difference of an answer: {self.difference:.2g}")
        lines.append(
            "an ordinary model: its configuration has the new sizes"
            if self.ordinary
            else "its layers have sizes of their own: it opens where fineprune is imported"
        )
        return "\n".join([*lines, *(f"not removed: {reason}" for reason in self.refused)])

    __repr__ = __str__


class _Step(NamedTuple):
    """The cuts of one kind in one stack, which are proved together."""

    what: str
    """"heads of encoder.block", for messages."""

    cuts: list[Cut]
    empty: list[tuple[Half, Units]]
    """The empty units of each half, whether or not they stay for the width."""


def shrink(model: nn.Module, probe: Mapping[str, Tensor] | None = None, round_to: int = 1) -> Shrunk:
    """Remove the empty heads and neurons of a finalized model, or of any with zeros, in place.

    A head is empty if nothing reads it or it has no values, a neuron if nothing reads it or it is a constant.
    Constants go into the bias of the matrix that reads them. Heads that share K and V go together. The
    smaller model must give the same answers and hidden states on two batches: neurons of all layers of a
    stack are tried first, then heads, and what is not proved is put back. If a half of a layer is empty, one
    unit of zeros remains.

    Where the new widths are the same in all layers and the model's class can be given them, its configuration
    is edited. Parameters are replaced by new ones, so build an optimizer afterwards.

    Args:
        model: the whole model: what holds it would not be told its sizes, its parts are. Of a
            SentenceTransformer or a CrossEncoder, the transformer in it is shrunk.
        probe: inputs to compare the answers on; None: two batches made from the configuration.
        round_to: each feed-forward keeps as many empty neurons as make its width a multiple of this.

    Raises:
        FinepruneError: the model is prepared, accelerated, quantized, sharded or carries adapters; it has no
            heads or neurons that can be told; or the probe does not show what is removed.
    """
    _refuse(model, round_to)
    model = transformer_of(model)
    blocks = layout_of(model)
    if not any(block.attentions or block.feed_forwards for block in blocks):
        raise FinepruneError(
            f"{type(model).__name__}: its heads and neurons are not known, only matrices such as "
            f"{', '.join(list(find_targets(model))[:3])}; it cannot be shrunk"
        )
    before = _size(model)
    steps, refused = _steps(model, blocks, round_to)
    proved: list[Cut] = []
    largest = 0.0
    edits = Edits(model)
    if steps:
        with in_float32(model):
            proof = Proof(model, blocks, probe)
            for step in steps:
                proof.check_sight(step.what, step.empty)
            for step in steps:
                reason, differs = _attempt(step, proof, edits)
                if reason is not None:
                    refused.append(f"{step.what}: {reason}")
                else:
                    proved += step.cuts
                    largest = max(largest, differs)
    origin = remaining(model, blocks, proved, edits.ordinary)
    if proved:
        record(model, origin)
    parameters, flops = zip(before, _size(model), strict=True)
    return Shrunk(origin.heads, origin.neurons, origin.ordinary, parameters, flops, largest, tuple(refused))


def _refuse(model: nn.Module, round_to: int) -> None:
    check_module(model, "shrink")
    refuse_compiled(model)
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise FinepruneError(f"round_to={round_to!r}: give a whole number of neurons, 1 or more")
    refuse_accelerated(model, "shrink it before accelerate, or load it again without")
    if any(True for _ in masked_modules(model)):
        raise FinepruneError(
            "this model is prepared: its masks are not zeros yet; call finalize, then shrink"
        )
    refuse_quantized(model)
    for name, _ in adapted_layers(model):
        raise FinepruneError(
            f"{name}: carries an adapter; merge (merge_and_unload) or remove it before shrink"
        )
    refuse_meta(model)
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise FinepruneError(
            "this model is sharded over processes; load the result of gather_state_dict into a model of one "
            "process, and shrink that"
        )


def _size(model: nn.Module) -> tuple[int, int]:
    """Return the parameters and the FLOPs of a model."""
    return sum(parameter.numel() for parameter in model.parameters()), 2 * costs(model, LENGTH).multiply_adds


def _steps(model: nn.Module, blocks: list[Block], round_to: int) -> tuple[list[_Step], list[str]]:
    """Return what can go, neurons first, and why other empty units cannot."""
    config: Any = getattr(model, "config", None)
    activation = activation_of(config.get_text_config() if hasattr(config, "get_text_config") else config)
    shared = _shared(model)
    steps: dict[str, _Step] = {}
    refused = []
    for kind in ("neurons", "heads"):
        for block in blocks:
            for half in block.feed_forwards if kind == "neurons" else block.attentions:
                if isinstance(half, FeedForward):
                    alive, added = empty_neurons(model, half, activation)
                    width = _rounded(int(alive.sum()), round_to, len(alive))
                else:
                    alive, added = empty_heads(model, half)
                    width = max(int(alive.sum()), 1)
                if width == len(alive):
                    continue
                if reason := _unfit(model, half, shared):
                    refused.append(f"{kind} of {half.name}: {reason}")
                    continue
                empty = np.flatnonzero(~alive)
                zeros = empty[: width - int(alive.sum())]
                kept = np.sort(np.concatenate([np.flatnonzero(alive), zeros]))
                what = f"{kind} of {block.stack or 'the model'}"
                step = steps.setdefault(what, _Step(what, [], []))
                step.cuts.append(Cut(half, kept, zeros, added))
                step.empty.append((half, empty))
    return list(steps.values()), refused


def _rounded(alive: int, multiple: int, most: int) -> int:
    return min(-(-max(alive, 1) // multiple) * multiple, most)


def _shared(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that several modules have."""
    counts = Counter(id(one) for module in model.modules() for one in module._parameters.values())
    return {one for one, count in counts.items() if count > 1}


def _unfit(model: nn.Module, half: Half, shared: set[int]) -> str | None:
    """Return why the matrices of a half cannot be replaced; None if they can."""
    for name in by_matrix(half.lines):
        module = model.get_submodule(name)
        if parametrize.is_parametrized(module) or "weight" not in module._parameters:
            return f"{name} is parametrized; remove its parametrization first"
        if "forward" in vars(module):  # accelerate's hooks, which would go on to run the old module
            return f"{name} has a forward method of its own, as with device_map; load the model without"
        if any(id(parameter) in shared for parameter in module.parameters()):
            return f"{name} shares a parameter with another layer"
    return None


def _attempt(step: _Step, proof: Proof, edits: Edits) -> tuple[str | None, float]:
    """Cut, and keep it if it is proved; return why it is not, or None, and the difference."""
    resizing = Resizing(proof.model)
    try:
        for cut in step.cuts:
            resizing.cut(cut)
        edits.apply(layout_of(proof.model))
        differs = proof.differs()
        reason = (
            "the smaller model gives answers of other shapes"
            if differs != differs
            else f"the smaller model's answers differ by {differs:.2g}, and {TOLERANCE:g} is allowed"
        )
    except Exception as error:  # code that was not made for these shapes may fail in any way
        differs = float("nan")
        reason = (
            "the model's own code does not run without them, as where something outside of these matrices, "
            f"such as a bias of positions, has an entry for each ({one_line(error, 200)})"
        )
    if differs <= TOLERANCE:
        return None, differs
    resizing.undo()
    edits.apply(layout_of(proof.model))
    return reason, differs
