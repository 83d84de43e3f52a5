"""Count the remaining weights of each matrix: in a prepared model by its masks, in any other by its zeros."""

from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import torch
from torch import nn

from fineprune.pruning.distributed import ranks
from fineprune.pruning.finalizing import masked_modules
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.targets import check_module, find_targets, refuse_meta


class MatrixSummary(NamedTuple):
    """One matrix: its dotted name, its shape, and its remaining and total weights."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int

    @property
    def density(self) -> float:
        """The share of weights that remain, 0 to 1."""
        return self.kept / self.total


@dataclass(frozen=True)
class Summary:
    """The remaining weights of the target matrices; prints as a table with a line for each matrix."""

    layers: tuple[MatrixSummary, ...]
    parameters: int
    """All parameters of the model, including embeddings and heads, without scores."""

    @property
    def kept(self) -> int:
        """The remaining weights of the target matrices."""
        return sum(layer.kept for layer in self.layers)

    @property
    def total(self) -> int:
        """All weights of the target matrices."""
        return sum(layer.total for layer in self.layers)

    @property
    def density(self) -> float:
        """The share of weights that remain, 0 to 1."""
        return self.kept / self.total

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'matrix':{width}}  {'shape':>12}  {'kept':>12}  {'of':>12}  density"]
        for name, shape, kept, total in self.layers:
            size = " x ".join(map(str, shape))
            lines.append(f"{name:{width}}  {size:>12}  {kept:>12,}  {total:>12,}  {kept / total:7.2%}")
        lines.append(f"{'all':{width}}  {'':>12}  {self.kept:>12,}  {self.total:>12,}  {self.density:7.2%}")
        return "\n".join([*lines, self._outside])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the same table as HTML, for a notebook."""
        rows = [
            (escape(name), " × ".join(map(str, shape)), f"{kept:,}", f"{total:,}", f"{kept / total:.2%}")
            for name, shape, kept, total in self.layers
        ]
        rows.append(("all", "", f"{self.kept:,}", f"{self.total:,}", f"{self.density:.2%}"))
        head = "".join(f"<th>{text}</th>" for text in ("matrix", "shape", "kept", "of", "density"))
        body = "\n".join(f"<tr>{''.join(f'<td>{text}</td>' for text in row)}</tr>" for row in rows)
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        return f"{table}\n<p>{self._outside}</p>"

    @property
    def _outside(self) -> str:
        outside = self.parameters - self.total
        return f"{outside:,} more parameters (embeddings, norms, biases, heads) are not pruned"


@torch.no_grad()
def summary(model: nn.Module) -> Summary:
    """Return the remaining weights of each target matrix.

    In a prepared model they are those that the current masks keep; in any other the non-zero weights of the
    layers that `prepare` would prune by default.
    """
    check_module(model, "summary")
    refuse_meta(model)
    layers = _by_masks(model)
    masks = (module for module in model.modules() if isinstance(module, MaskedWeight))
    scores = sum(parameter.numel() for masked in masks for parameter in masked.parameters())
    if not layers:
        counted = set()
        for name, module in find_targets(model).items():
            weight = module.get_parameter("weight")
            if id(weight) in counted:  # layers that share one weight
                continue
            counted.add(id(weight))
            layers.append(
                MatrixSummary(name, tuple(weight.shape), ranks.count_nonzero(weight), weight.numel())
            )
    parameters = sum(parameter.numel() for parameter in model.parameters()) - scores
    return Summary(tuple(layers), parameters)


def _unique_masks(model: nn.Module) -> dict[str, MaskedWeight]:
    """Return the masks of a prepared model by the first matrix that has each."""
    first: dict[int, tuple[str, MaskedWeight]] = {}
    for name, _, masked in masked_modules(model):
        first.setdefault(id(masked), (name, masked))
    return dict(first.values())


def _by_masks(model: nn.Module) -> list[MatrixSummary]:
    """Return what the current masks keep, in the model's order: where they are, and of what follows them."""
    found: dict[str, MatrixSummary] = {}
    names = {module: name for name, module in model.named_modules()}
    for name, masked in _unique_masks(model).items():
        mask = masked.kept()
        found[name] = MatrixSummary(name, tuple(mask.shape), int(torch.count_nonzero(mask)), mask.numel())
    for masked in _unique_masks(model).values():
        dead = ~masked.kept_units()
        for follower in masked.followers:
            place, weight = names[follower.module], follower.weight
            kept = found[place].kept if place in found else weight.numel()  # fused: several parts follow
            kept -= len(follower.places(dead)) * weight.shape[1 - follower.lines.axis]
            found[place] = MatrixSummary(place, tuple(weight.shape), kept, weight.numel())
    return [found[name] for name, _ in model.named_modules() if name in found]
