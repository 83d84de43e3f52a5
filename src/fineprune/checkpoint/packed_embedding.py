"""Keep an embedding table packed in memory, and unpack only the rows that are looked up."""

from typing import Any

import torch
from torch import Tensor, nn

from fineprune_runtime import codec

_DENSE = 0  # the code of the form of positions that stores every element, docs/format.md


class PackedEmbedding(nn.Module):
    """An nn.Embedding that looks rows up in its blob: the same rows as the unpacked table's.

    `weight` is the blob, 1-d int8, as in `PackedLinear`; its values are float16, int8 or int4. The blob must
    pass `fits`.
    """

    def __init__(self, table: nn.Embedding, blob: Tensor) -> None:
        super().__init__()
        self.shape = (table.num_embeddings, table.embedding_dim)
        self.num_embeddings, self.embedding_dim = self.shape
        self.padding_idx = table.padding_idx
        self.dtype = table.weight.dtype
        self.weight = nn.Parameter(blob, requires_grad=False)

    @staticmethod
    def fits(table: nn.Module, blob: Tensor) -> bool:
        """Return whether a module only looks rows up, and the blob stores each row in one piece."""
        if type(table) is not nn.Embedding or table.max_norm is not None:
            return False
        header = codec.read_header(blob.numpy())
        dense = header.positions == _DENSE and header.shape == tuple(table.weight.shape)
        nibbles = header.values == "int4" and table.embedding_dim % 2 == 0
        return dense and (nibbles or header.values in ("float16", "int8"))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, (...) -> (..., width), in the type that the dense table would have."""
        blob = self.weight.view(torch.uint8)
        header = codec.read_header(blob[:64].cpu().numpy())
        if header.values == "float16":
            return self._rows(ids, blob[header.size :]).view(torch.float16).to(self.dtype)
        levels = header.size + 4 * self.num_embeddings
        scales = self._rows(ids, blob[header.size : levels]).view(torch.float32)  # (..., 1)
        rows = self._rows(ids, blob[levels:])
        if header.values == "int4":  # two to a byte, the low half first, in two's complement
            rows = torch.stack((rows & 15, rows >> 4), dim=-1).flatten(-2)
            return ((rows ^ 8).view(torch.int8) - 8).float().mul(scales).to(self.dtype)
        return rows.view(torch.int8).float().mul(scales).to(self.dtype)

    def _rows(self, ids: Tensor, table: Tensor) -> Tensor:
        """Return the bytes of rows, (...) -> (..., bytes of a row); numbers in the blob may be unaligned."""
        return nn.functional.embedding(ids, table.view(self.num_embeddings, -1))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # As in PackedLinear: the type of the output follows casts like half().
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bytes={self.weight.numel()}"
