"""A model's weights <-> the tensors of a compact checkpoint, with a manifest that tells a changed one.

A packed matrix is a blob of `codec` under the weight's own name, as 1-d bytes: a reader that knows
nothing of it stops on the shape. All other tensors are stored as they are. The manifest lies in
the metadata of each safetensors file; `fineprune_runtime.manifest` checks it.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fineprune._messages import near
from fineprune.checkpoint.packed_embedding import PackedEmbedding
from fineprune.errors import FinepruneError
from fineprune.pruning.targets import is_linear
from fineprune_runtime import codec
from fineprune_runtime import manifest as manifests
from fineprune_runtime.errors import EngineError

Values = Literal["float32", "float16", "bfloat16", "int8"]
Embeddings = Literal["keep", "float16", "int8", "int4"]

SPARSE = 0.94  # a matrix denser than this takes no less room packed
_OWN_TYPE = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


class PackedLinear(nn.Module):
    """A linear layer whose weight stays packed in memory, and is unpacked for each call.

    `weight` is the blob, 1-d int8 (which models that cast to their weights' type leave alone, as
    they do for other quantized layers). The same result as the dense layer, slower and smaller: what
    the sparse engine starts from.
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
        weight = unpack(self.weight, self.shape).to(x.device, self.dtype)
        x = x.to(self.dtype)  # T5 casts to the type of its weight itself, but not to int8
        return nn.functional.linear(x, weight.T if self.transposed else weight, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # The blob is bytes, which casts like half() pass over: the type to unpack to has to follow them.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"shape={self.shape}, bytes={self.weight.numel()}"


def is_packed(module: nn.Module) -> bool:
    """Whether a module keeps its weight packed in memory."""
    return isinstance(module, (PackedLinear, PackedEmbedding))


def check_types(values: str, embeddings: str) -> None:
    """Raise `FinepruneError` unless both are known."""
    for name, value, known in (
        ("values", values, get_args(Values)),
        ("embeddings", embeddings, get_args(Embeddings)),
    ):
        if value not in known:
            close = near(str(value), known)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise FinepruneError(f"{name}={value!r}: {hint}allowed are {', '.join(known)}")


@torch.no_grad()
def pack_state(
    model: nn.Module, values: Values, embeddings: Embeddings
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict with blobs in place of sparse matrices and, as asked, of embedding tables.

    "float32" is exact: a half-precision matrix is then stored in its own type. Also
    returns what a manifest says of them: the names of the pruned ones, and how many weights are kept.
    """
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
            done[same] = _packed(key, tensor, kind, values, embeddings)
            if kind == "packed" or (kind == "linear" and done[same] is not tensor):
                header = codec.read_header(done[same].numpy())
                pruned.append(key)
                kept += header.kept
                total += math.prod(header.shape)
        state[key] = done[same]
    return state, {"pruned": sorted(pruned), "kept": kept, "total": total}


def _packed(key: str, tensor: Tensor, kind: str, values: Values, embeddings: Embeddings) -> Tensor:
    """The blob of a weight, or the weight where it is not to be packed."""
    if kind in ("packed", "packed table"):
        return tensor.cpu().view(torch.uint8)
    if kind == "embedding" and embeddings == "keep":
        return tensor
    if kind == "linear" and int(torch.count_nonzero(tensor)) >= SPARSE * tensor.numel():
        return tensor
    return pack(key, tensor, values if kind == "linear" else embeddings)


def pack(key: str, tensor: Tensor, values: Any) -> Tensor:
    """The blob of one weight, 1-d uint8 on the CPU; `key` is for the error that names it."""
    if tensor.dtype not in (torch.float32, *_OWN_TYPE):
        raise FinepruneError(
            f"{key}: is {tensor.dtype}; float32, float16 and bfloat16 can be packed: cast it"
        )
    own: Any = _OWN_TYPE.get(tensor.dtype, values) if values == "float32" else values
    try:
        # + 0 makes a zero of -0, which a mask that was multiplied in leaves: no output tells them apart.
        return torch.from_numpy(codec.encode((tensor.detach().float().cpu() + 0.0).numpy(), own))
    except codec.CodecError as error:
        raise FinepruneError(f"{key}: {error}") from error


def packed_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the tensors that `save_compact` would write, embeddings kept, for some types of the values.

    A type that cannot hold them (float16 ends at 65,504) is left out.
    """
    sizes: dict[str, int] = {}
    types: tuple[Values, ...] = ("float32", "float16", "int8")
    for values in types:
        with contextlib.suppress(FinepruneError):
            sizes[values] = bytes_of(pack_state(model, values, "keep")[0])
    return sizes


def bytes_of(state: Mapping[str, Tensor]) -> int:
    """Bytes of its tensors; one that has several names is stored once."""
    unique = {(tensor.data_ptr(), tensor.shape): tensor for tensor in state.values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


def unpack(blob: Tensor, shape: Iterable[int]) -> Tensor:
    """The float32 matrix of a blob, on the CPU."""
    return torch.from_numpy(codec.decode(blob.detach().cpu().view(torch.uint8).numpy(), tuple(shape)))


def manifest(state: Mapping[str, Tensor], kept: Mapping[str, Any]) -> dict[str, str]:
    """The metadata for a file that holds `state`, whole or in part."""
    tensors = {name: _checksum(name, tensor) for name, tensor in state.items()}
    return {manifests.KEY: json.dumps({"version": codec.VERSION, **kept, "tensors": tensors})}


def verify(
    files: Iterable[str | Path],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    matrices: dict[str, tuple[int, Tensor]] | None = None,
) -> dict[str, Any]:
    """Check every byte of a compact checkpoint before anything is made of it; returns the manifest.

    `shapes`, where given, are the model's, by name: a blob of another shape is an error. `matrices`,
    where given, takes what those blobs hold, unpacked, by name, beside the blob's checksum. Raises
    `FinepruneError` for a file that is cut off or changed, a tensor that is missing, added or
    damaged, and a checkpoint that does not hold what it says.
    """

    def keep(name: str, blob: codec.Bytes, shape: tuple[int, ...]) -> None:
        if matrices is None:
            codec.take_apart(
                blob, shape
            )  # not codec.unpack, which numbers each place of a whole table: 8 bytes each
            return
        matrices[name] = (codec.read_header(blob).checksum, torch.from_numpy(codec.decode(blob, shape)))

    try:
        return manifests.verify(files, shapes, keep)
    except EngineError as error:
        raise FinepruneError(str(error)) from error


def is_blob(tensor: Tensor) -> bool:
    """Whether a tensor is a packed matrix."""
    return tensor.dtype == torch.uint8 and tensor.ndim == 1 and codec.is_blob(tensor[:4].numpy())


def _checksum(name: str, tensor: Tensor) -> int:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return manifests.checksum(name, str(tensor.dtype), tuple(tensor.shape), data)
