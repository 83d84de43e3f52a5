"""Convert a model's weights to and from the tensors of a compact checkpoint, with a manifest of checksums.

A packed matrix is a blob of `codec` under the weight's own name, as 1-d bytes: a reader that does not know
the format stops on the shape. All other tensors are stored unchanged. The manifest is in the metadata of
each safetensors file; `fineprune_runtime.manifest` checks it.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fineprune._engine_errors import engine_errors
from fineprune._messages import choose
from fineprune.checkpoint.packed_embedding import PackedEmbedding
from fineprune.errors import FinepruneError
from fineprune.pruning.targets import find_targets, is_linear, repeated_blocks
from fineprune_runtime import codec
from fineprune_runtime import manifest as manifests

Values = Literal["float32", "float16", "bfloat16", "int8"]
Embeddings = Literal["keep", "float16", "int8", "int4"]

SPARSE = codec.DENSE_FROM
"""A matrix denser than this is no smaller packed exactly, and no faster in the sparse engine."""

_OWN_TYPE = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Packing:
    """The types that a model is packed with. Raises `FinepruneError` for an unknown one."""

    values: Values = "float32"
    """Of matrices with zeros, and, if it is not "float32", which is exact, of all in the repeated layers."""

    embeddings: Embeddings = "keep"
    """Of the embedding tables; "keep" leaves them dense."""

    def __post_init__(self) -> None:
        choose(self.values, get_args(Values), "values")
        choose(self.embeddings, get_args(Embeddings), "embeddings")

    @property
    def is_exact(self) -> bool:
        """Whether no weight is rounded."""
        return self.values == "float32" and self.embeddings == "keep"

    @property
    def of_tables(self) -> str:
        """The type that decides how far an embedding may be rounded."""
        return "float32" if self.embeddings == "keep" else self.embeddings


class PackedLinear(nn.Module):
    """A linear layer whose weight stays packed in memory, and is unpacked for each call.

    `weight` is the blob, 1-d int8: models that cast inputs to their weights' type leave int8 alone, as
    they do for other quantized layers. The layer gives the same result as the dense one, slower and in less
    memory; the sparse engine is built from it.
    """

    def __init__(self, linear: nn.Module, blob: Tensor) -> None:
        super().__init__()
        weight = linear.get_parameter("weight")
        self.shape = tuple(weight.shape)
        self.dtype = weight.dtype
        self.transposed = not isinstance(linear, nn.Linear)  # transformers' Conv1D is (in, out)
        self.weight = nn.Parameter(blob, requires_grad=False)
        self.bias = getattr(linear, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        try:
            weight = unpack(self.weight, self.shape).to(x.device, self.dtype)
        except codec.CodecError as error:  # the blob is a map of the file, which was whole when it was opened
            raise FinepruneError(
                f"a packed weight of shape {self.shape}: {error}; was its file overwritten since it was "
                "loaded? Replace files by rename, and load the model again"
            ) from error
        x = x.to(self.dtype)  # T5 casts to its weight's type by itself, but not to int8
        return nn.functional.linear(x, weight.T if self.transposed else weight, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Casts like half() skip the blob, which is bytes: the type to unpack to has to follow them.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"shape={self.shape}, bytes={self.weight.numel()}"


def is_packed(module: nn.Module) -> bool:
    """Return whether a module keeps its weight packed in memory."""
    return isinstance(module, (PackedLinear, PackedEmbedding))


@torch.no_grad()
def pack_state(model: nn.Module, packing: Packing) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict with blobs for sparse matrices and, as asked, embedding tables.

    Where values are rounded, the matrices of the repeated layers are packed without zeros, too. "float32" is
    exact: a half-precision matrix is then stored in its own type. The second result is the
    manifest's part about them: the names of the pruned matrices, and the numbers of kept and of all weights.
    """
    kinds = _kinds(model)
    if packing.values != "float32" and repeated_blocks(model):
        inside = (f"{name}.weight" for name in find_targets(model))
        kinds |= {key: "inside" for key in inside if kinds.get(key) == "linear"}
    state = model.state_dict()
    # Tied weights are one tensor under several names: packed once, and as the table if one is a table.
    ordered = sorted(state, key=lambda key: kinds.get(key) != "embedding")
    done: dict[tuple[int, torch.Size], Tensor] = {}
    pruned, kept, total = [], 0, 0
    for key in ordered:
        tensor = state[key]
        same = (tensor.data_ptr(), tensor.shape)
        kind = kinds.get(key)
        if kind is None:
            continue
        if same not in done:
            done[same] = _packed(key, tensor, kind, packing)
            if kind == "packed" or (kind in ("linear", "inside") and done[same] is not tensor):
                header = codec.read_header(done[same].numpy())
                pruned.append(key)
                kept += header.kept
                total += math.prod(header.shape)
        state[key] = done[same]
    return state, {"pruned": sorted(pruned), "kept": kept, "total": total}


def _kinds(model: nn.Module) -> dict[str, str]:
    """Return what each weight that may be packed belongs to, by its key in the state dict."""
    kinds: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        key = f"{name}.weight" if name else "weight"
        if isinstance(module, nn.Embedding):
            kinds.setdefault(key, "embedding")
        elif is_linear(module):
            kinds.setdefault(key, "linear")
        elif isinstance(module, PackedLinear):
            kinds.setdefault(key, "packed")
        elif isinstance(module, PackedEmbedding):
            kinds.setdefault(key, "packed table")
    return kinds


def _packed(key: str, tensor: Tensor, kind: str, packing: Packing) -> Tensor:
    """Return the blob of a weight, or the weight itself where it is not to be packed."""
    if kind in ("packed", "packed table"):
        return tensor.cpu().view(torch.uint8)
    if kind == "embedding" and packing.embeddings == "keep":
        return tensor
    if kind == "linear" and int(torch.count_nonzero(tensor)) >= SPARSE * tensor.numel():
        return tensor
    return pack(key, tensor, packing.embeddings if kind == "embedding" else packing.values)


def pack(key: str, tensor: Tensor, values: Any) -> Tensor:
    """Return the blob of one weight, 1-d uint8 on the CPU; errors name it by `key`."""
    if tensor.dtype not in (torch.float32, *_OWN_TYPE):
        raise FinepruneError(
            f"{key}: is {tensor.dtype}; float32, float16 and bfloat16 can be packed: cast it"
        )
    own: Any = _OWN_TYPE.get(tensor.dtype, values) if values == "float32" else values
    try:
        # + 0 turns -0, which multiplying by a mask leaves, into 0: no output depends on the sign.
        return torch.from_numpy(codec.encode((tensor.detach().float().cpu() + 0.0).numpy(), own))
    except codec.CodecError as error:
        raise FinepruneError(f"{key}: {error}") from error


def packed_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes of the tensors that `save_compact` would write, by the type of the values.

    Embeddings are kept as they are, but for the last entry, "int8, embeddings int8". A type that cannot hold
    the values (float16 ends at 65,504) is skipped.
    """
    sizes: dict[str, int] = {}
    kinds = {name: Packing(name) for name in ("float32", "float16", "int8")}
    for name, packing in (kinds | {"int8, embeddings int8": Packing("int8", "int8")}).items():
        with contextlib.suppress(FinepruneError):
            sizes[name] = bytes_of(pack_state(model, packing)[0])
    return sizes


def bytes_of(state: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors; one with several names counts once."""
    unique = {(tensor.data_ptr(), tensor.shape): tensor for tensor in state.values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


def unpack(blob: Tensor, shape: Iterable[int]) -> Tensor:
    """Return the float32 matrix of a blob, on the CPU."""
    return torch.from_numpy(codec.decode(blob.detach().cpu().view(torch.uint8).numpy(), tuple(shape)))


def manifest(state: Mapping[str, Tensor], kept: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a safetensors file that holds `state` or a part of it."""
    tensors = {name: _checksum(name, tensor) for name, tensor in state.items()}
    return {manifests.KEY: json.dumps({"version": codec.VERSION, **kept, "tensors": tensors})}


def verify(
    files: Iterable[str | Path],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    matrices: dict[str, tuple[int, Tensor]] | None = None,
    masks: bool = False,
) -> dict[str, Any]:
    """Check every byte of a compact checkpoint, before any of it is used, and return the manifest.

    Args:
        files: All safetensors files of the checkpoint.
        shapes: The model's shapes by name; a blob of another shape is an error.
        matrices: Filled with the unpacked matrix of each of these blobs, by name, and the blob's checksum.
        masks: Allow blobs that are masks, as a delta has.

    Raises:
        FinepruneError: for a file that is cut off or changed, a tensor that is missing, added or damaged,
            and a checkpoint that contradicts its manifest.
    """

    def keep(name: str, blob: codec.Bytes, shape: tuple[int, ...]) -> None:
        if not masks and codec.read_header(blob).values == "mask":
            raise codec.CodecError("is a mask without values, which only a delta may hold")
        if matrices is None:
            # codec.unpack would make an index of each element of a dense table: 8 bytes per element.
            codec.take_apart(blob, shape)
            return
        matrices[name] = (codec.read_header(blob).checksum, torch.from_numpy(codec.decode(blob, shape)))

    with engine_errors():
        return manifests.verify(files, shapes, keep)


def is_blob(tensor: Tensor) -> bool:
    """Return whether a tensor is a packed matrix."""
    return tensor.dtype == torch.uint8 and tensor.ndim == 1 and codec.is_blob(tensor[:4].numpy())


def _checksum(name: str, tensor: Tensor) -> int:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return manifests.checksum(name, str(tensor.dtype), tuple(tensor.shape), data)
