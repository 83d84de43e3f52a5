"""Which attention heads and feed-forward neurons a mask leaves, from the kept weights of rows and columns."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fineprune.pruning.places import Kind, place_of


class Counted(Protocol):
    """A matrix of which each row's and each column's kept weights are known (`training.record.Matrix`)."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def rows(self) -> NDArray[np.int32]: ...
    @property
    def columns(self) -> NDArray[np.int32]: ...


class LayerLeft(NamedTuple):
    """What is left of one layer. Heads or neurons that cannot be told from the matrices count 0 of 0."""

    stack: str
    layer: int
    heads: int
    heads_left: int
    neurons: int
    neurons_left: int


class _Matrix(NamedTuple):
    """A matrix as y = W x has it: kept weights of each output and of each input."""

    name: str
    kind: Kind
    outputs: NDArray[Any]
    inputs: NDArray[Any]


_Counts = NDArray[Any]
_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads")
_CONV1D = ("c_attn", "q_attn", "c_proj", "c_fc")  # what transformers' Conv1D layers are called
_WIDE = ("QKV", "FFN in")  # have more outputs than inputs; "FFN out" has fewer


def heads_of(config: Mapping[str, Any]) -> int:
    """Attention heads of a layer as a model's configuration says; 0 where it does not, or not one number."""
    given = next((config[name] for name in _HEADS if name in config), 0)
    other = config.get("decoder_attention_heads", given)
    return given if isinstance(given, int) and given == other else 0


def left(matrices: Sequence[Counted], heads: int) -> list[LayerLeft]:
    """The layers that the names number, in the order of the matrices; `heads` is the model's number a layer.

    A head is empty if none of its rows of V or none of its columns of O keeps a weight; a neuron is if its
    row of FFN in (either of two, in a gated one) or its column of FFN out does not. A matrix that is not
    among those given is whole. What cannot be told is left out.
    """
    layers: dict[tuple[str, int], list[Counted]] = {}
    for matrix in matrices:
        stack, layer, _ = place_of(matrix.name)
        if layer is not None:
            layers.setdefault((stack, layer), []).append(matrix)
    found = []
    for (stack, layer), members in layers.items():
        turned = _turned(members)
        attentions: dict[str, list[_Matrix]] = {}
        forwards: dict[str, list[_Matrix]] = {}
        for one in turned:
            if one.kind in ("Q", "V", "QKV", "O"):
                attentions.setdefault(_attention(one.name), []).append(one)
            elif one.kind in ("FFN in", "FFN out"):
                forwards.setdefault(_forward(one.name), []).append(one)
        alive_heads = [_heads(group, heads) for group in attentions.values()]
        alive_neurons = [_neurons(group) for group in forwards.values()]
        counts = (*_total(alive_heads), *_total(alive_neurons))
        if any(counts):
            found.append(LayerLeft(stack, layer, *counts))
    return found


def _turned(members: Iterable[Counted]) -> list[_Matrix]:
    """The matrices with outputs and inputs told apart: transformers' Conv1D (GPT-2's layers)
    stores its weight as inputs x outputs, which shows where a matrix is not square.
    """
    known = [(matrix, place_of(matrix.name).kind) for matrix in members]
    signs = [
        (matrix.shape[0] < matrix.shape[1]) == (kind != "FFN out")
        for matrix, kind in known
        if _may_be_turned(matrix.name)
        and matrix.shape[0] != matrix.shape[1]
        and (kind in _WIDE or kind == "FFN out")
    ]
    found = []
    for matrix, kind in known:
        if not _may_be_turned(matrix.name) or (signs and not any(signs)):
            found.append(_Matrix(matrix.name, kind, matrix.rows, matrix.columns))
        elif signs and all(signs):
            found.append(_Matrix(matrix.name, kind, matrix.columns, matrix.rows))
    return found


def _may_be_turned(name: str) -> bool:
    return name.rpartition(".")[2] in _CONV1D


def _heads(group: list[_Matrix], heads: int) -> NDArray[np.bool_] | None:
    """Which heads of one attention are left."""
    by_kind = {matrix.kind: matrix for matrix in group}
    size = _head_size(by_kind, heads)
    if size is None:
        return None
    alive = np.ones(heads, bool)
    if "O" in by_kind:
        alive &= _any(by_kind["O"].inputs, heads)
    values = _values(by_kind, heads, size)
    if values is not None:
        if len(values) % size or not len(values) or heads % (len(values) // size):
            return None
        shared = len(values) // size  # several heads may share one of V
        alive &= np.repeat(_any(values, shared), heads // shared)
    return alive


def _head_size(by_kind: dict[Kind, _Matrix], heads: int) -> int | None:
    """Numbers in a head; None where it cannot be told, or where neither V nor O is there."""
    whole = 0
    if "O" in by_kind:
        whole = len(by_kind["O"].inputs)
    elif "QKV" in by_kind:
        fused = by_kind["QKV"]
        whole = len(fused.inputs) if len(fused.outputs) == 3 * len(fused.inputs) else 0
    elif "V" in by_kind:
        value = by_kind["V"]
        if "Q" in by_kind:
            whole = len(by_kind["Q"].outputs)
        elif len(value.outputs) == len(value.inputs):  # else it may be one that heads share
            whole = len(value.outputs)
    return whole // heads if heads > 0 and whole and whole % heads == 0 else None


def _values(by_kind: dict[Kind, _Matrix], heads: int, size: int) -> _Counts | None:
    """The outputs of V, alone or as part of a fused matrix."""
    if "V" in by_kind:
        return by_kind["V"].outputs
    if "QKV" not in by_kind:
        return None
    fused = by_kind["QKV"].outputs
    if by_kind["QKV"].name.endswith("query_key_value"):  # GPT-NeoX, BLOOM: head by head
        return fused.reshape(heads, 3, size)[:, 2].ravel() if len(fused) == 3 * heads * size else fused[:0]
    start = 0 if "Q" in by_kind else heads * size  # beside a Q (GPT-2's cross-attention) it is K and V alone
    return fused[start + (len(fused) - start) // 2 :]


def _neurons(group: list[_Matrix]) -> NDArray[np.bool_] | None:
    """Which neurons of one feed-forward are left."""
    sides = [matrix.inputs for matrix in group if matrix.kind == "FFN out"]
    if not sides and group[0].name.endswith(
        ("Wi", "gate_up_proj")
    ):  # one matrix or two: only the other side tells
        return None
    count = len(sides[0]) if sides else min(len(matrix.outputs) for matrix in group)
    for matrix in group:
        if matrix.kind == "FFN in":
            fused = len(matrix.outputs) == 2 * count  # both matrices of a gated one, as ModernBERT's Wi
            sides += list(matrix.outputs.reshape(2, count)) if fused else [matrix.outputs]
    if any(len(side) != count for side in sides):
        return None
    alive: NDArray[np.bool_] = np.logical_and.reduce([side > 0 for side in sides])
    return alive


def _any(counts: _Counts, parts: int) -> NDArray[np.bool_]:
    """Whether each of so many equal parts keeps a weight."""
    alive: NDArray[np.bool_] = np.logical_or.reduce(counts.reshape(parts, -1) > 0, axis=1)
    return alive


def _total(alive: Iterable[NDArray[np.bool_] | None]) -> tuple[int, int]:
    """How many there are, and how many are left."""
    told = [one for one in alive if one is not None]
    return sum(map(len, told)), sum(int(one.sum()) for one in told)


def _attention(name: str) -> str:
    """The attention that a matrix is of: a decoder's layer has two."""
    found = re.match(r".*?\d+\..*?att[^.]*", name, re.IGNORECASE)
    return found[0] if found else name.rpartition(".")[0]


def _forward(name: str) -> str:
    """The feed-forward that a matrix is of; BERT's two are called intermediate.dense and output.dense."""
    parts = name.split(".")
    return ".".join(parts[: -2 if parts[-1] == "dense" else -1])
