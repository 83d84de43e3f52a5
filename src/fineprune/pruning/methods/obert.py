"""oBERT (Kurtic et al. 2022, arXiv:2203.07259): second-order pruning in blocks, for cuts that are few.

Before each cut, m gradients of mini-batches give the empirical Fisher in blocks of B consecutive weights of
a matrix, F = lambda·I + (1/m)·sum of g·gᵀ, which stands for the Hessian. The loss expected of removing a
weight, and what makes up for it in the rest of its block, are

    S_i = W_i² / (2·[F⁻¹]_ii)        W <- W - F⁻¹·q,  q_i = W_i / [F⁻¹]_ii where i is cut, else 0,

and cut weights are then set to 0. `recompute` makes each cut in equal parts, each with an F of its own: the
estimate holds only near the weights at which it was made. lambda is a share of the mean g² of the weights
that are left, since gradients of trained models are tiny.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.masked_weight import density_of
from fineprune.pruning.methods.base import Method, Parts, refuse_frozen
from fineprune.pruning.methods.measured import LEAST_INTERVAL, Measured, sum_over_processes
from fineprune.pruning.methods.soft_movement import FLOOR
from fineprune.pruning.target import Target

_MOST_BLOCK = 64


@dataclass(frozen=True)
class Options:
    """The options of oBERT."""

    block: int = 50
    """B, the weights of a block, 1 to 64; 1 is the diagonal. Memory at a cut is 4·B bytes a weight."""

    gradients: int = 256
    """m, the mini-batches of which gradients are taken for an estimate; the authors take 1,024."""

    damp: float = 0.1
    """lambda as a share of the mean g², greater than 0; the larger, the closer to magnitude."""

    recompute: int = 1
    """The equal parts of a cut, each with an estimate of its own."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range, or cuts too often for what they cost."""
        most = {"block": _MOST_BLOCK, "gradients": None, "recompute": None}
        for name, highest in most.items():
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or value < 1
                or (highest is not None and value > highest)
            ):
                allowed = "at least 1" if highest is None else f"from 1 to {highest}"
                raise FinepruneError(f"options.{name}={value!r}: must be a whole number, {allowed}")
        if isinstance(self.damp, bool) or not isinstance(self.damp, (int, float)) or not 0 < self.damp < 1e6:
            raise FinepruneError(f"options.damp={self.damp!r}: must be a number greater than 0, such as 0.1")
        if self.block > 1 and config.mask_interval < LEAST_INTERVAL:
            raise FinepruneError(
                f"mask_interval={config.mask_interval!r}: a cut of obert costs options.gradients forward and "
                f"backward passes, so there must be {LEAST_INTERVAL} steps between two; options.block=1 has "
                "no such limit"
            )


class Obert(Method):
    """oBERT: cut the weights whose removal costs least by the block Fisher, and make up for it."""

    Options = Options

    def parts(self) -> Parts:
        rule = BlockFisher(self.options)
        floor = FLOOR if self.scope == "global" else 0.0
        return Parts(rule, floor=floor, check=self._check, after_cut=rule.compensate)

    def _check(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse frozen weights, and matrices whose blocks do not fit the memory."""
        refuse_frozen(weights)
        unique = {id(weight): weight for weight in weights.values()}.values()
        needed = 4 * self.options.block * sum(weight.numel() for weight in unique)
        free = _free_bytes(next(iter(unique)).device)
        if free is not None and needed > free:
            raise FinepruneError(
                f"options.block={self.options.block}: the blocks need {needed / 1e9:.1f} GB at a cut, and "
                f"{free / 1e9:.1f} GB are free; give a smaller block, or exclude some layers"
            )


class BlockFisher(Measured):
    """The expected loss of each weight, and the compensation of a cut."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._inverses: list[Tensor] = []
        self._before: list[Tensor] = []

    def stops(self, targets: Sequence[Target], density: float) -> list[float]:
        now, parts = density_of(target.masked for target in targets), self._options.recompute
        return [now + (density - now) * part / parts for part in range(1, parts)] + [density]

    @torch.no_grad()
    def measure(self, targets: Sequence[Target]) -> list[Tensor]:
        self.compensate(targets)  # for an earlier part of this cut
        block = self._options.block
        weights = [target.weight for target in targets]
        inverses = [
            torch.zeros(-(-weight.numel() // block), block, block, device=weight.device) for weight in weights
        ]
        count = torch.zeros((), device=weights[0].device)
        for gradients in self.gradients(targets, self._options.gradients):
            for inverse, gradient in zip(inverses, gradients, strict=True):
                add_outer(inverse, in_blocks(gradient, block))
            count += 1
        sum_over_processes(count, inverses)
        self._before = [target.masked.mask.clone() for target in targets]
        left = sum(int(torch.count_nonzero(mask)) for mask in self._before)
        squares = sum(float(entry.diagonal(dim1=1, dim2=2).sum(dtype=torch.float64)) for entry in inverses)
        if not squares > 0:
            raise FinepruneError(
                "method='obert': all gradients are 0 or nan at this cut, so nothing can be ranked; lower the "
                "learning rate, or look at what measure_on returns"
            )
        lambda_ = self._options.damp * squares / float(count) / left
        self._inverses = [invert(entry.div_(count.to(entry.device)), lambda_) for entry in inverses]
        pairs = zip(weights, self._inverses, strict=True)
        return [expected_loss(weight, inverse) for weight, inverse in pairs]

    @torch.no_grad()
    def compensate(self, targets: Sequence[Target]) -> None:
        """Change the weights that are left such that they make up for those cut since the measurement."""
        if not self._inverses:
            return
        for target, inverse, before in zip(targets, self._inverses, self._before, strict=True):
            weight, mask = target.weight, target.masked.mask
            weight.copy_(without(weight, inverse, before & ~mask)).masked_fill_(~mask, 0)
        self._inverses, self._before = [], []


def in_blocks(tensor: Tensor, block: int) -> Tensor:
    """Return the entries as (blocks, block), float32, the last block filled up with zeros."""
    flat = tensor.detach().float().reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block)


def add_outer(sums: Tensor, gradient: Tensor) -> None:
    """Add g·gᵀ of each block to `sums`, (blocks, block, block)."""
    sums.baddbmm_(gradient.unsqueeze(2), gradient.unsqueeze(1))


def invert(fisher: Tensor, lambda_: float) -> Tensor:
    """Return (F + lambda·I)⁻¹ of each block; F is overwritten."""
    fisher.diagonal(dim1=1, dim2=2).add_(lambda_)
    return torch.cholesky_inverse(torch.linalg.cholesky(fisher))


def expected_loss(weight: Tensor, inverse: Tensor) -> Tensor:
    """Return W_i² / (2·[F⁻¹]_ii) in the shape of the weight."""
    scores = in_blocks(weight, inverse.shape[1]).square_().div_(inverse.diagonal(dim1=1, dim2=2)).div_(2)
    return scores.view(-1)[: weight.numel()].view(weight.shape)


def without(weight: Tensor, inverse: Tensor, cut: Tensor) -> Tensor:
    """Return W - F⁻¹·q in the shape and type of the weight, with zeros where `cut` is."""
    block = inverse.shape[1]
    wanted = in_blocks(torch.where(cut, weight, 0), block).div_(inverse.diagonal(dim1=1, dim2=2))
    change = torch.bmm(inverse, wanted.unsqueeze(2)).view(-1)[: weight.numel()].view(weight.shape)
    return torch.where(cut, 0, weight - change).to(weight.dtype)


def _free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device; None where it cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.is_file():
        return None
    values = dict(line.split(":") for line in table.read_text(encoding="ascii").splitlines())
    return int(values["MemAvailable"].split()[0]) * 1024
