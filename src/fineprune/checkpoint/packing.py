"""A model's weights <-> the tensors of a compact checkpoint, with a manifest that tells a changed one.

A packed matrix is a blob of `codec` under the weight's own name, as 1-d bytes: a reader that knows
nothing of it stops on the shape. All other tensors are stored as they are. The manifest lies in
the metadata of each safetensors file: a checksum for every tensor of the model, and what is kept.
"""

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fineprune._strict import near
from fineprune.checkpoint import codec
from fineprune.errors import FinepruneError
from fineprune.pruning.targets import is_linear

Values = Literal["float32", "float16", "bfloat16", "int8"]
Embeddings = Literal["keep", "float16", "int8", "int4"]

MANIFEST = "fineprune"  # the key in a file's metadata
SPARSE = 0.94  # a matrix denser than this takes no less room packed
_OWN_TYPE = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


class PackedLinear(nn.Module):
    """A linear layer whose weight stays packed in memory, and is unpacked for each call.

    `weight` is the blob, 1-d int8 (which models that cast to their weights' type leave alone, as
    they do for other quantised layers). The same result as the dense layer, slower and smaller: what
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
    if kind == "packed":
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


def unpack(blob: Tensor, shape: Iterable[int]) -> Tensor:
    """The float32 matrix of a blob, on the CPU."""
    return torch.from_numpy(codec.decode(blob.detach().cpu().view(torch.uint8).numpy(), tuple(shape)))


def manifest(state: Mapping[str, Tensor], kept: Mapping[str, Any]) -> dict[str, str]:
    """The metadata for a file that holds `state`, whole or in part."""
    tensors = {name: _checksum(name, tensor) for name, tensor in state.items()}
    return {MANIFEST: json.dumps({"version": codec.VERSION, **kept, "tensors": tensors})}


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
    said: dict[str, Any] | None = None
    seen: dict[str, int] = {}
    kept = total = 0
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                text = (opened.metadata() or {}).get(MANIFEST)
                said = _parsed(file, text, said)
                pruned = set(said["pruned"])
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    tensor = _tensor(opened, name)
                    seen[name] = _checksum(name, tensor)
                    if seen[name] != said["tensors"].get(name):
                        raise FinepruneError(
                            f"{file}: {name} is not what was saved: save or fetch the file again"
                        )
                    if is_blob(tensor):
                        header = _checked(file, name, tensor, (shapes or {}).get(name), matrices)
                        if name in pruned:
                            kept += header.kept
                            total += math.prod(header.shape)
        except (OSError, SafetensorError) as error:
            raise FinepruneError(f"{file}: cannot be read, it is cut off or damaged ({error})") from error
    if said is None:
        raise FinepruneError("no weights: a compact checkpoint has one .safetensors file or more")
    if missing := sorted(set(said["tensors"]) - set(seen)):
        raise FinepruneError(
            f"{missing[0]} is missing ({len(missing)} tensors in all): a file of the checkpoint is not there"
        )
    if (kept, total) != (said["kept"], said["total"]):
        raise FinepruneError(
            f"the checkpoint says that it keeps {said['kept']:,} of {said['total']:,} weights, "
            f"and holds {kept:,} of {total:,}"
        )
    return said


def is_blob(tensor: Tensor) -> bool:
    """Whether a tensor is a packed matrix."""
    return tensor.dtype == torch.uint8 and tensor.ndim == 1 and codec.is_blob(tensor[:4].numpy())


def _tensor(opened: Any, name: str) -> Tensor:
    try:
        return opened.get_tensor(name)  # type: ignore[no-any-return]
    except TypeError as error:  # torch has no word for a dimension of 2^63, and safetensors lets it pass
        raise SafetensorError(f"{name}: {error}") from error


def _parsed(file: Any, text: str | None, before: dict[str, Any] | None) -> dict[str, Any]:
    if text is None:
        raise FinepruneError(
            f"{file}: has no fineprune manifest; it is no compact checkpoint, or one that was rewritten"
        )
    try:
        said = json.loads(text)
        version, tensors, pruned = said["version"], said["tensors"], said["pruned"]
        whole = all(isinstance(number, int) for number in (version, said["kept"], said["total"]))
        named = isinstance(pruned, list) and all(isinstance(name, str) for name in pruned)
        if not (whole and named and isinstance(tensors, dict)):
            raise TypeError("wrong types in it")
    except (ValueError, RecursionError, KeyError, TypeError) as error:  # a number too long: ValueError
        raise FinepruneError(f"{file}: its fineprune manifest cannot be read ({error})") from error
    if version != codec.VERSION:
        raise FinepruneError(
            f"{file}: format version {version}; this fineprune reads version {codec.VERSION}: upgrade it"
        )
    if before is not None and said != before:
        raise FinepruneError(f"{file}: belongs to another checkpoint than the files before it")
    return said  # type: ignore[no-any-return]


def _checked(
    file: Any,
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...] | None,
    matrices: dict[str, tuple[int, Tensor]] | None,
) -> codec.Header:
    try:
        header = codec.read_header(tensor.numpy())
        if shape is not None:  # without it nothing bounds what the blob says of itself
            if matrices is None:
                codec.unpack(tensor.numpy(), shape)
            else:
                matrices[name] = (header.checksum, unpack(tensor, shape))
        return header
    except codec.CodecError as error:
        raise FinepruneError(f"{file}: {name}: {error}") from error


def _checksum(name: str, tensor: Tensor) -> int:
    """Of a tensor's name, type, shape and bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(data.data, zlib.crc32(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode()))
