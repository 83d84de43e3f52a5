"""Second moments of what a matrix reads, over the tokens that are there: padding is left out."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.pruning.anatomy import place_of
from fineprune.pruning.targets import is_pointwise

_OF_ENCODER = re.compile("enc|cross", re.IGNORECASE)  # the attention of a decoder that reads the encoder


class Moments:
    """H = (2/N) sum x x^T over all inputs of one weight, which several modules may share.

    Attributes:
        tokens: N.
        padded: Whether padding may be among them, because its place could not be told.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._two_stacks = has_two_stacks(model)
        self._sum: Tensor | None = None
        self._total: Tensor | None = None
        self.tokens = 0
        self.padded = False

    def take(self, name: str, value: Tensor, batch: Any) -> None:
        """Add an input of one of the modules."""
        rows = self.rows(name, value, batch)
        products = (rows.mT @ rows).to(precise(rows.device))
        total = rows.sum(0, dtype=products.dtype)
        self._sum = products if self._sum is None else self._sum.add_(products)
        self._total = total if self._total is None else self._total.add_(total)
        self.tokens += len(rows)

    def rows(self, name: str, value: Tensor, batch: Any) -> Tensor:
        """Return an input of one of the modules as (tokens, inputs), without padding."""
        if is_pointwise(self._modules[name]):
            value = value.movedim(1, -1)
        mask = present(name, batch, self._two_stacks)
        if mask is not None:
            value, told = _without_padding(value, mask.to(value.device))
            self.padded |= not told
        elif isinstance(batch, Mapping) and getattr(batch.get("attention_mask"), "ndim", 2) != 2:
            self.padded = True  # a mask of another form may hide tokens, and does not say which
        return value.reshape(-1, value.shape[-1]).float()

    @property
    def gram(self) -> Tensor:
        """(inputs, inputs): H without damping."""
        assert self._sum is not None
        return self._sum * (2 / max(self.tokens, 1))

    @property
    def mean(self) -> Tensor:
        """(inputs,): the mean input."""
        assert self._total is not None
        return self._total / max(self.tokens, 1)

    @property
    def centered(self) -> Tensor:
        """H of the inputs less their mean: what counts where a bias takes the mean of what is cut."""
        return self.gram - 2 * torch.outer(self.mean, self.mean)


def precise(device: torch.device) -> torch.dtype:
    """Return the type in which matrices are inverted: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def present(name: str, batch: Any, two_stacks: bool) -> Tensor | None:
    """Return which tokens of a batch are no padding, as the input of a matrix has them; None if all are.

    Args:
        name: The dotted name of the matrix.
        batch: The batch.
        two_stacks: Whether the model is an encoder with a decoder, each with tokens of its own.
    """
    if not isinstance(batch, Mapping):
        return None
    _, layer, kind = place_of(name)
    stack, _, inside = name.partition(f".{layer}.")
    reads_encoder = kind in ("K", "V") and _OF_ENCODER.search(inside)
    return real_tokens(batch, two_stacks and "decoder" in stack and not reads_encoder)


def has_two_stacks(model: nn.Module) -> bool:
    """Return whether a model is an encoder with a decoder, each with tokens of its own."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def real_tokens(batch: Any, of_decoder: bool) -> Tensor | None:
    """Return which tokens of a batch are no padding, bool (texts, tokens); None where nothing says so.

    Args:
        batch: The batch.
        of_decoder: Whether the tokens are those of the decoder beside an encoder.
    """
    if not isinstance(batch, Mapping):
        return None
    mask = batch.get("attention_mask")
    if of_decoder:
        mask, labels = batch.get("decoder_attention_mask"), batch.get("labels")
        if mask is None and isinstance(labels, Tensor) and labels.ndim == 2:
            mask = labels != -100
        elif mask is None and "decoder_input_ids" not in batch:  # the decoder reads the same text
            mask = batch.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _without_padding(value: Tensor, mask: Tensor) -> tuple[Tensor, bool]:
    """Return an input without padding, and whether it could be told."""
    if value.ndim == 3 and value.shape[:2] == mask.shape:
        return value[mask], True
    if value.ndim == 2 and len(value) == mask.numel():
        return value[mask.flatten()], True
    whole = bool(mask.all()) or (value.ndim == 2 and len(value) == int(mask.sum()))
    return value, whole or (value.ndim == 3 and len(value) != len(mask))  # distances, as DeBERTa reads them
