"""The shapes of a shrunk or low-rank model on disk: checked before anything is allocated, then given to it.

config.json keeps the original sizes, and each tensor of the files has its own shape, that of fewer heads or
neurons; of a low-rank layer there are two matrices, `0` and `1`, in the place of one.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from fineprune._engine_errors import engine_errors
from fineprune.errors import FinepruneError
from fineprune.pruning.anatomy import Attention, Block, FeedForward
from fineprune.pruning.layout import layout_of
from fineprune.pruning.low_rank import is_low_rank, multiply_out, sides, thin
from fineprune.pruning.origin import Kept, Origin, origin_of, record
from fineprune.pruning.resizing import READERS, Resizing, by_matrix, resize, units_of
from fineprune.pruning.targets import is_linear, is_pointwise
from fineprune_runtime import codec
from fineprune_runtime import manifest as manifests

KEY = "shrunk"
"""The key with the heads and neurons that remain, by number, in the manifest and in fineprune.json."""

Shape = tuple[int, ...]


class _Half(NamedTuple):
    block: Block
    half: Attention | FeedForward

    @property
    def what(self) -> str:
        return "heads" if isinstance(self.half, Attention) else "neurons"


def has_own(model: nn.Module) -> bool:
    """Return whether a model has other shapes than its class gives it under its configuration."""
    origin = origin_of(model)
    return is_low_rank(model) or (origin is not None and not origin.ordinary)


def fit(model: Any, files: Iterable[str | Path]) -> None:
    """Give a model, which may be on the meta device, the shapes of its files, and record what remains.

    Args:
        model: with the shapes of its configuration.
        files: the safetensors files.

    Raises:
        FinepruneError: a matrix is larger than the configuration says, holds a part of a head, or does not
            fit the other matrices of its layer.
    """
    shapes, manifest = _read(files)
    if _make_thin(model, shapes):
        record(model, None)
        return
    stored = _by_name(model, shapes)
    halves = _halves(model)
    widths = {}
    for entry in halves:
        units = _units_in(entry, stored)
        if units is not None and units != units_of(entry.half):
            widths[entry.half.name] = units
    resize(model, widths)
    for entry in halves:
        _check(model, entry, stored, widths.get(entry.half.name, units_of(entry.half)))
    if widths:
        prefix = f"{model.base_model_prefix}."
        record(model, _origin(halves, widths, _recorded(manifest), prefix))


def full_size(model: Any) -> Any:
    """Give a model the sizes of its configuration, in place, and return it.

    A shrunk one gets heads and neurons of zeros, a low-rank one the products of its thin matrices.
    """
    if is_low_rank(model):
        multiply_out(model)
    if not has_own(model):
        return model
    with torch.device("meta"):
        full = {entry.half.name: entry.half for entry in _halves(type(model)(copy.deepcopy(model.config)))}
    resizing = Resizing(model)
    for _, half in _halves(model):
        resizing.pad(half, full[half.name])
    record(model, None)
    return model


def to_dict(origin: Origin) -> dict[str, Any]:
    """Return what the manifest and fineprune.json say of a shrunk model."""
    content: dict[str, Any] = {"ordinary": origin.ordinary, "heads": {}, "neurons": {}}
    for what, halves in (("heads", origin.heads), ("neurons", origin.neurons)):
        for kept in halves:
            content[what][kept.name] = {
                "units": list(kept.units),
                "zeros": list(kept.zeros),
                "of": kept.of,
            }
    return content


def _halves(model: nn.Module) -> list[_Half]:
    halves = []
    for block in layout_of(model):
        halves += [_Half(block, half) for half in block.attentions]
        halves += [_Half(block, half) for half in block.feed_forwards]
    return halves


def _read(files: Iterable[str | Path]) -> tuple[dict[str, Shape], str | None]:
    """Return the shapes of the tensors in files, of a packed matrix that of its blob, and a manifest."""
    shapes = {}
    text = None
    with engine_errors():
        for file in files:
            text, tensors = manifests.read(file)
            for tensor in tensors:
                try:
                    blob = codec.read_header(tensor.data) if tensor.is_blob else None
                except codec.CodecError as error:
                    raise FinepruneError(
                        f"{file}: {tensor.name}: {error}; save or fetch the file again"
                    ) from error
                shapes[tensor.name] = tensor.shape if blob is None else blob.shape
    return shapes, text


def _make_thin(model: Any, stored: Mapping[str, Shape]) -> bool:
    """Put two thin layers where the files have two matrices for one; return whether there are such.

    Raises:
        FinepruneError: the matrices do not fit each other, or the layer that config.json asks for.
    """
    ranks = {}
    for name, names in _names_in_files(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if not name.endswith(".weight") or not is_linear(layer) or is_pointwise(layer):
            continue
        for known in (each.removesuffix(".weight") for each in names):
            first, second = (stored.get(f"{known}.{part}.weight") for part in "01")
            if first is None or second is None:
                continue
            inputs, outputs = sides(layer)
            rank = first[0] if first else 0
            if (first, second) != ((rank, inputs), (outputs, rank)) or rank < 1:
                raise FinepruneError(
                    f"{known}: the files hold thin matrices of {_text(first)} and {_text(second)}, and their "
                    f"product is not {outputs} x {inputs}, as config.json asks; fetch the model again"
                )
            ranks[name.removesuffix(".weight")] = rank
            break
    for name, rank in ranks.items():
        model.set_submodule(name, thin(model.get_submodule(name), rank))
    return bool(ranks)


def _by_name(model: Any, stored: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the stored shapes by the names that the model has."""
    found = {}
    for name, names in _names_in_files(model).items():
        for known in names:
            if known in stored:
                found[name] = stored[known]
                break
    return found


def _names_in_files(model: Any) -> dict[str, tuple[str, ...]]:
    """Return the names that files may have for each tensor, by its name; transformers may rename them."""
    state: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    in_files = {id(tensor): name for name, tensor in revert_weight_conversion(model, dict(state)).items()}
    prefix = f"{model.base_model_prefix}."
    names = {name: str(in_files.get(id(tensor), name)) for name, tensor in state.items()}
    return {name: (known, known.removeprefix(prefix), prefix + known) for name, known in names.items()}


def _units_in(entry: _Half, stored: Mapping[str, Shape]) -> int | None:
    """Return the units of a half by the matrix that reads them; None if the files lack it."""
    half = entry.half
    reader = next((part for part in half.lines if part.kind in READERS), None)
    shape = stored.get(f"{reader.matrix}.weight") if reader is not None else None
    if reader is None or shape is None:
        return None
    most = units_of(half)
    lines = len(reader.positions) // most
    length = shape[reader.axis] if len(shape) == 2 else 0
    if length % lines or not 1 <= length // lines <= most:
        each = f" of {lines} each" if lines > 1 else ""
        raise FinepruneError(
            f"{reader.matrix}.weight: the files hold {_text(shape)}, whose side {reader.axis} is not 1 to "
            f"{most} {entry.what}{each}, as config.json allows; fetch the model again"
        )
    return length // lines


def _check(model: nn.Module, entry: _Half, stored: Mapping[str, Shape], units: int) -> None:
    for matrix in by_matrix(entry.half.lines):
        for name, parameter in model.get_submodule(matrix).named_parameters(prefix=matrix):
            shape = stored.get(name)
            if shape is not None and shape != tuple(parameter.shape):
                raise FinepruneError(
                    f"{name}: the files hold {_text(shape)}; with {units} of {units_of(entry.half)} "
                    f"{entry.what} in its layer it is {_text(tuple(parameter.shape))}; fetch the model again"
                )


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _origin(
    halves: list[_Half], widths: Mapping[str, int], recorded: Mapping[str, Any], prefix: str
) -> Origin:
    """Return what remains; `prefix` is in the names of a class with a head, which may have written them."""
    kept: dict[str, list[Kept]] = {"heads": [], "neurons": []}
    for entry in halves:
        block, half = entry
        together = half.sizes.heads // half.sizes.groups if isinstance(half, Attention) else 1
        total, left = units_of(half) * together, widths.get(half.name, units_of(half)) * together
        names = (half.name, half.name.removeprefix(prefix), prefix + half.name)
        found = filter(None, (_numbers(recorded, entry.what, name, left) for name in names))
        units, zeros, of = next(found, (tuple(range(left)), (), total))
        kept[entry.what].append(Kept(half.name, block.stack, block.layer, units, zeros, of))
    return Origin(tuple(kept["heads"]), tuple(kept["neurons"]), ordinary=False)


def _recorded(manifest: str | None) -> Mapping[str, Any]:
    """Return what a manifest says of the units; it is for reports, so nothing depends on it."""
    try:
        found = json.loads(manifest or "")[KEY]
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _numbers(
    recorded: Mapping[str, Any], what: str, name: str, left: int
) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Return the recorded numbers of a half's units, if they fit its width."""
    try:
        entry = recorded[what][name]
        units, zeros, of = tuple(entry["units"]), tuple(entry["zeros"]), entry["of"]
        fits = len(units) == left and list(units) == sorted({int(unit) for unit in units})
        if fits and units[0] >= 0 and units[-1] < of and set(zeros) <= set(units):
            return units, zeros, of
    except (KeyError, TypeError, ValueError):
        pass
    return None
