"""ADMM: train dense weights that are drawn toward a sparse copy, then cut once (ELSA, SAFE).

The problem min L(W) with at most v·n weights is split into W and a sparse copy z, with a scaled dual u:

    each step        dL/dW <- dL/dW + lambda·(W - z + u), lambda = strength·ramp·RMS(dL/dW) / RMS(W - z)
    each interval    z <- P(W + u), u <- u + W - z, where P keeps the v·n entries that matter most
    at T - t_f       the weights in the support of z stay, and masked training goes on to the end

P ranks c·(W + u)², where c is a running mean of g² (a diagonal Fisher), or |W + u|. The pull begins at t_i,
and its ramp is that of Eq. 5. lambda is relative to the gradient of each matrix, since Adam would otherwise
see only the pull.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.methods.base import Method, Parts, gradual, refuse_frozen
from fineprune.pruning.methods.soft_movement import FLOOR
from fineprune.pruning.schedule import Schedule
from fineprune.pruning.score_rules import Observed, Ranked
from fineprune.pruning.target import Target

_BETA = 0.999  # share of the past in the mean of g², as in Adam


@dataclass(frozen=True)
class Options:
    """The options of ADMM."""

    strength: float = 1.0
    """The pull toward the sparse copy as a multiple of the task's gradient, greater than 0."""

    interval: int = 32
    """Steps between projections, which renew the sparse copy."""

    objective_aware: bool = True
    """Rank c·(W + u)², with the curvature c of the loss; False ranks |W + u|."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` for a value out of range or of a wrong type."""
        strength, interval = self.strength, self.interval
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength < 1e6:
            raise FinepruneError(f"options.strength={strength!r}: must be a number greater than 0, such as 1")
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise FinepruneError(f"options.interval={interval!r}: must be a number of steps, at least 1")
        if not isinstance(self.objective_aware, bool):
            raise FinepruneError(f"options.objective_aware={self.objective_aware!r}: must be true or false")


class Admm(Method):
    """ADMM: dense training with a pull toward a sparse copy, then one cut."""

    Options = Options

    def parts(self) -> Parts:
        if self.config.initial_density != 1:
            raise FinepruneError(
                f"initial_density={self.config.initial_density!r}: admm trains dense weights and cuts once; "
                "leave initial_density out"
            )
        schedule = gradual(self.config, self.total)
        rule = Projection(self.options, schedule, self.config.density)
        return Parts(
            rule,
            floor=FLOOR,
            plan=lambda *_: schedule._replace(warmup=schedule.total - schedule.cooldown),
            check=self._check,
        )

    def _check(self, weights: Mapping[str, Tensor]) -> None:
        if self.options.objective_aware:
            refuse_frozen(weights)


class Projection(Observed):
    """The scores are c; beside them are the sparse copy z, whose support stays in the end, and the dual u."""

    def __init__(self, options: Options, schedule: Schedule, density: float) -> None:
        self._options, self._schedule, self._density = options, schedule, density

    def statistics(self, size: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(size) for name in ("sparse", "dual")}

    def ranked(self, targets: Sequence[Target]) -> Ranked:
        return Ranked([target.masked.statistics["sparse"] for target in targets], torch.abs)

    @torch.no_grad()
    def observe(self, targets: Sequence[Target], step: int, lr: Callable[[Target], float]) -> None:
        done = step - 1
        if self._schedule.at_final(done):
            return
        for target in targets:
            if target.weight.grad is not None:
                squares = ranks.local(target.weight.grad).float().square()
                ranks.local(target.scores).lerp_(squares, 1 - _BETA)
        since = done - self._schedule.warmup
        if since >= 0 and since % self._options.interval == 0:
            self.project(targets, first=since == 0)
        if strength := self._options.strength * self._schedule.ramp(done):
            trained = [target for target in targets if target.weight.grad is not None]
            for target, ratio in zip(trained, _ratios(trained), strict=True):
                pull(target, ratio * strength)

    def project(self, targets: Sequence[Target], first: bool) -> None:
        """Set z to the projection of W + u, and add W - z to u, which stays 0 the first time."""
        sums = [target.weight.detach().float() + target.masked.statistics["dual"] for target in targets]
        if self._options.objective_aware:
            refuse_frozen({target.name: target.weight for target in targets})  # since `prepare`
            worth = [target.scores * entry.square() for target, entry in zip(targets, sums, strict=True)]
        else:
            worth = [entry.abs() for entry in sums]
        flags = [torch.empty_like(target.masked.mask) for target in targets]
        ranks.of(worth).top_v(worth, self._density, flags, floor=FLOOR)
        for target, entry, flag in zip(targets, sums, flags, strict=True):
            sparse, dual = (ranks.local(found) for found in target.masked.statistics.values())
            sparse.copy_(ranks.local(entry)).mul_(ranks.rows_like(flag, target.weight))
            if not first:
                torch.sub(ranks.local(entry), sparse, out=dual)


def pull(target: Target, lambda_: Tensor | float) -> None:
    """Add lambda·(W - z + u) to the gradient of a weight."""
    assert target.weight.grad is not None
    sparse, dual = (ranks.local(found) for found in target.masked.statistics.values())
    away = (ranks.local(target.weight).float() - sparse).add_(dual).mul_(lambda_)
    gradient = ranks.local(target.weight.grad)
    gradient.add_(away.to(gradient.dtype))


def _ratios(targets: Sequence[Target]) -> list[Tensor]:
    """Return RMS(dL/dW) / RMS(W - z) of each matrix, over all processes; 0 where W is z."""
    if not targets:
        return []
    device, squares = targets[0].weight.device, []
    for target in targets:
        assert target.weight.grad is not None
        gap = ranks.local(target.weight).float() - ranks.local(target.masked.statistics["sparse"])
        for entry in (ranks.local(target.weight.grad).float(), gap):
            squares.append(entry.square().sum().to(device))
    sums = torch.stack(squares)
    shards = ranks.Shards.of([target.weight for target in targets])
    if shards is not None:
        sums = shards.sum(sums)
    gradients, gaps = sums.view(-1, 2).unbind(1)
    found = torch.where(gaps > 0, gradients / gaps, 0).sqrt()
    return [entry.to(target.weight.device) for entry, target in zip(found, targets, strict=True)]
