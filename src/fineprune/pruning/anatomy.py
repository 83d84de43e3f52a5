"""Where the blocks of a model are, and which lines of its matrices belong to which head or neuron.

Read off the matrices' names and shapes and the model's configuration, so that masks, reports and smaller
models agree. A line is an output of a matrix y = Wx (a row of W), or an input (a column) where the matrix
reads the units' results. Heads of Q that share a head of K and V are one unit.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.anatomy import KINDS, Kind, Place, head_size_of, heads_of, place_of
from fineprune_runtime.dead_units import HeadSizes

__all__ = [
    "KINDS",
    "Attention",
    "Block",
    "FeedForward",
    "HeadSizes",
    "Kind",
    "Lines",
    "NamedMatrix",
    "Place",
    "blocks_of",
    "fused_lines",
    "head_size_of",
    "heads_of",
    "place_of",
]

Numbers = NDArray[np.int64]


class NamedMatrix(Protocol):
    """A weight matrix by its dotted name and its shape, as it is stored."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...


class Lines(NamedTuple):
    """The lines of one matrix, or of one part of a fused one, and the unit of each."""

    matrix: str
    """The dotted name."""

    kind: Kind
    """Never "QKV": a fused matrix has an entry each for Q, K and V."""

    axis: int
    """Of the stored weight: 0 for its rows, 1 for its columns."""

    positions: Numbers
    """(lines,): where they are along the axis, in the order of a matrix that is not fused."""

    units: Numbers
    """(lines,): the number of the head, of the group of heads, or of the neuron."""

    def of(self, *units: int) -> Numbers:
        """Return where the lines of some units are along the axis."""
        lines: Numbers = self.positions[np.isin(self.units, units)]
        return lines


class Attention(NamedTuple):
    """One attention of a block. Its units are groups of heads, single heads unless they share K and V."""

    name: str
    sizes: HeadSizes
    lines: tuple[Lines, ...]

    def dims(self, *kinds: Kind) -> tuple[Lines, ...]:
        """Return the lines of some kinds, with the dims of a group of heads as units in place of the group.

        Dim j of group g is unit g * size + j: a line of K or V, and one of each head that shares it.
        """
        return tuple(
            part._replace(units=part.units * self.sizes.size + np.arange(len(part.units)) % self.sizes.size)
            for part in self.lines
            if part.kind in kinds
        )


class FeedForward(NamedTuple):
    """One feed-forward of a block. Its units are neurons."""

    name: str
    neurons: int
    lines: tuple[Lines, ...]


class Block(NamedTuple):
    """One numbered layer of a model, with what can be told from the matrices given."""

    stack: str
    layer: int
    attentions: tuple[Attention, ...]
    """A decoder's block may have a second one, its cross-attention."""

    feed_forwards: tuple[FeedForward, ...]
    """Several where a block has experts."""


class _Matrix(NamedTuple):
    """A matrix as y = Wx, (outputs, inputs)."""

    name: str
    kind: Kind
    outputs: int
    inputs: int
    transposed: bool
    """Whether its rows are the inputs."""

    def lines(self, kind: Kind, positions: Numbers, units: Numbers) -> Lines:
        reads = kind in ("O", "FFN out")
        return Lines(self.name, kind, int(reads != self.transposed), positions, units)


_CONV1D = ("c_attn", "q_attn", "c_proj", "c_fc")  # the names of transformers' Conv1D layers
_WIDE = ("QKV", "FFN in")  # have more outputs than inputs; "FFN out" has fewer
_INTERLEAVED = "query_key_value"  # GPT-NeoX, BLOOM, Falcon
_MAYBE_GATED = ("Wi", "gate_up_proj")  # one matrix, or both matrices of a gated feed-forward


def blocks_of(matrices: Iterable[NamedMatrix], config: Mapping[str, Any]) -> list[Block]:
    """Return the blocks that the matrices' names number, in the order of the matrices.

    An attention or a feed-forward is left out if its units cannot be told: `config` has no number of heads,
    or the shapes do not fit each other. Without K and V each head counts as a group of its own.
    """
    heads, size = heads_of(config), head_size_of(config)
    members: dict[tuple[str, int], list[NamedMatrix]] = {}
    for matrix in matrices:
        stack, layer, _ = place_of(matrix.name)
        if layer is not None:
            members.setdefault((stack, layer), []).append(matrix)
    blocks = []
    for (stack, layer), block in members.items():
        oriented = _oriented(block)
        attentions = _grouped(oriented, ("Q", "K", "V", "QKV", "O"), _attention_name)
        forwards = _grouped(oriented, ("FFN in", "FFN out"), _feed_forward_name)
        told = [_attention(name, group, heads, size) for name, group in attentions.items()]
        read = [_feed_forward(name, group) for name, group in forwards.items()]
        blocks.append(
            Block(
                stack,
                layer,
                tuple(attention for attention in told if attention is not None),
                tuple(forward for forward in read if forward is not None),
            )
        )
    return blocks


def fused_lines(sizes: HeadSizes, interleaved: bool = False, has_query: bool = True) -> dict[Kind, Numbers]:
    """Return where Q, K and V are among the outputs of a matrix that holds them all.

    Args:
        sizes: of the attention.
        interleaved: whether each group has its Q, K and V together; else all of Q comes first, then all of K.
        has_query: whether the matrix holds Q; a cross-attention may have it elsewhere.
    """
    heads, groups, size = sizes
    if interleaved:
        shared = heads // groups
        lines = np.arange((heads + 2 * groups) * size).reshape(groups, shared + 2, size)
        return {"Q": lines[:, :shared].ravel(), "K": lines[:, shared].ravel(), "V": lines[:, -1].ravel()}
    start, end = heads * size * has_query, groups * size
    keys = np.arange(start, start + end)
    query: dict[Kind, Numbers] = {"Q": np.arange(start)} if has_query else {}
    return query | {"K": keys, "V": keys + end}


def _oriented(members: Iterable[NamedMatrix]) -> list[_Matrix]:
    """Return the matrices with outputs and inputs told apart.

    transformers' Conv1D (GPT-2) stores a weight as inputs x outputs, under names that linear layers have in
    other models. A matrix of a live model says by `transposed` whether it is one. Else the shapes of a
    block's feed-forward and fused matrices decide; if they do not, those that might be one are left out.
    """
    known = [(matrix, place_of(matrix.name).kind) for matrix in members]
    signs = [
        (matrix.shape[0] < matrix.shape[1]) == (kind != "FFN out")
        for matrix, kind in known
        if _is_ambiguous(matrix.name)
        and matrix.shape[0] != matrix.shape[1]
        and (kind in _WIDE or kind == "FFN out")
    ]
    oriented = []
    for matrix, kind in known:
        rows, columns = matrix.shape
        transposed = getattr(matrix, "transposed", None)
        if transposed is None and _is_ambiguous(matrix.name):
            transposed = signs[0] if len(set(signs)) == 1 else None
        elif transposed is None:
            transposed = False
        if transposed is not None:
            sizes = (columns, rows) if transposed else (rows, columns)
            oriented.append(_Matrix(matrix.name, kind, *sizes, transposed))
    return oriented


def _is_ambiguous(name: str) -> bool:
    return name.rpartition(".")[2] in _CONV1D


def _grouped(
    matrices: Iterable[_Matrix], kinds: tuple[Kind, ...], name_of: Callable[[str], str]
) -> dict[str, list[_Matrix]]:
    groups: dict[str, list[_Matrix]] = {}
    for matrix in matrices:
        if matrix.kind in kinds:
            groups.setdefault(name_of(matrix.name), []).append(matrix)
    return groups


def _attention_name(name: str) -> str:
    """Return the name of the attention that a matrix belongs to: a decoder's block has two."""
    match = re.match(r".*?\d+\..*?att[^.]*", name, re.IGNORECASE)
    return match[0] if match else name.rpartition(".")[0]


def _feed_forward_name(name: str) -> str:
    """Return the name of a feed-forward. BERT's matrices are called intermediate.dense and output.dense."""
    parts = name.split(".")
    return ".".join(parts[: -2 if parts[-1] == "dense" else -1])


def _attention(name: str, group: list[_Matrix], heads: int, size: int | None) -> Attention | None:
    sizes = _head_sizes({matrix.kind: matrix for matrix in group}, heads, size)
    if sizes is None:
        return None
    groups = np.arange(sizes.groups)
    units: dict[Kind, Numbers] = dict.fromkeys(("K", "V"), np.repeat(groups, sizes.size))
    units |= dict.fromkeys(("Q", "O"), np.repeat(groups, sizes.heads // sizes.groups * sizes.size))
    has_query = all(matrix.kind != "Q" for matrix in group)
    all_lines: list[Lines] = []
    for matrix in group:
        if matrix.kind == "QKV":
            parts = fused_lines(sizes, matrix.name.endswith(_INTERLEAVED), has_query)
        else:
            parts = {matrix.kind: np.arange(len(units[matrix.kind]))}
        if sum(map(len, parts.values())) != (matrix.inputs if matrix.kind == "O" else matrix.outputs):
            return None
        all_lines += [matrix.lines(kind, lines, units[kind]) for kind, lines in parts.items()]
    return Attention(name, sizes, tuple(all_lines))


def _head_sizes(by_kind: Mapping[Kind, _Matrix], heads: int, size: int | None) -> HeadSizes | None:
    """Return the sizes of an attention; None where they cannot be told, or where neither V nor O is there.

    A given `size` decides over `heads`: an attention that lost heads is narrower than its configuration.
    """
    width = _width(by_kind)
    if not heads or not width or width % (size or heads):
        return None
    size = size or width // heads
    heads = width // size
    groups = _groups(by_kind, heads, size)
    return HeadSizes(heads, groups, size) if groups and heads % groups == 0 else None


def _width(by_kind: Mapping[Kind, _Matrix]) -> int:
    """Return the outputs of Q, heads x size, from the matrices that tell it; 0 where none does."""
    if "O" in by_kind:
        return by_kind["O"].inputs
    if "QKV" in by_kind:
        fused = by_kind["QKV"]
        return fused.inputs if fused.outputs == 3 * fused.inputs else 0
    if "V" in by_kind:
        value = by_kind["V"]
        if "Q" in by_kind:
            return by_kind["Q"].outputs
        if value.outputs == value.inputs:  # else it may be one that heads share
            return value.outputs
    return 0


def _groups(by_kind: Mapping[Kind, _Matrix], heads: int, size: int) -> int:
    """Return the heads of K and V; 0 where the outputs of these do not make whole heads."""
    separate = by_kind.get("V") or by_kind.get("K")
    if separate is not None:
        total, shares = separate.outputs, size
    elif "QKV" in by_kind:  # beside a Q it holds K and V alone
        total, shares = by_kind["QKV"].outputs - ("Q" not in by_kind) * heads * size, 2 * size
    else:
        return heads
    return 0 if total % shares else total // shares


def _feed_forward(name: str, group: list[_Matrix]) -> FeedForward | None:
    readers = [matrix.inputs for matrix in group if matrix.kind == "FFN out"]
    if not readers and group[0].name.endswith(_MAYBE_GATED):
        return None
    neurons = readers[0] if readers else min(matrix.outputs for matrix in group)
    units = np.arange(neurons)
    lines = []
    for matrix in group:
        count = matrix.inputs if matrix.kind == "FFN out" else matrix.outputs
        gated = matrix.kind == "FFN in" and count == 2 * neurons  # both matrices in one, as ModernBERT's Wi
        if count != neurons and not gated:
            return None
        lines += [matrix.lines(matrix.kind, units + part * neurons, units) for part in range(1 + gated)]
    return FeedForward(name, neurons, tuple(lines))
