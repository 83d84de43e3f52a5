"""The columns of the paper's Table 1, one small class each: what is different about a method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning import hard_concrete, selection
from fineprune.pruning.density_control import controlled_lambda, path
from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import GatedWeight, MaskedWeight
from fineprune.pruning.schedule import Schedule

_TAU = 0.1  # soft movement keeps sigmoid(S) > tau, and tau ends here


@dataclass
class Target:
    """One pruned weight: its dotted name, the module that holds it, and its mask."""

    name: str
    module: nn.Module
    masked: MaskedWeight

    @property
    def weight(self) -> nn.Parameter:
        """W itself, unmasked."""
        original: nn.Parameter = self.module.parametrizations.weight.original  # type: ignore[union-attr, assignment]
        return original

    @property
    def scores(self) -> Tensor:
        """Learned scores S, the weight's shape."""
        assert self.masked.scores is not None
        return self.masked.scores


@dataclass
class Control:
    """What the last refresh set: the threshold (None: nothing is cut) and lambda."""

    threshold: float | None = None
    lambda_: float = 0.0


class Method:
    """What the methods share: masks by Top_v of a score on the density schedule, no penalty."""

    start: ClassVar[float] = 0.0  # S of `score_init="zero"`
    floor: ClassVar[float] = 0.0  # share of each matrix that a global ranking leaves it

    def __init__(self, config: PruningConfig, schedule: Schedule) -> None:
        self.config = config
        self.schedule = schedule
        self.scope = config.scope or config.traits.scopes[0]

    @classmethod
    def plan(cls, config: PruningConfig, total: int) -> Schedule:
        """The schedule of a run of `total` steps."""
        return Schedule.plan(total, config.warmup, config.cooldown)

    @classmethod
    def check(cls, weights: Mapping[str, Tensor]) -> None:
        """Raise `FinepruneError` for weights, by name, that the method can do nothing with."""

    def masked_weight(self, weight: Tensor) -> MaskedWeight:
        """The parametrization of one weight."""
        return MaskedWeight(weight, self.initial_scores(weight))

    def initial_scores(self, weight: Tensor) -> Tensor:
        """S before the first step, float32."""
        scores = torch.full_like(
            weight, self.start, dtype=torch.float32, memory_format=torch.contiguous_format
        )
        if self.config.score_init != "zero":
            size = weight.detach().float().abs()
            scores += size / size.mean().clamp_min(torch.finfo(torch.float32).tiny)
        return scores

    def ranked(self, targets: Sequence[Target]) -> tuple[list[Tensor], selection.Key | None]:
        """What Top_v ranks: tensors, and a function of them that needs no copy."""
        return [target.scores for target in targets], None

    def refresh(self, targets: Sequence[Target], step: int) -> Control:
        """Set the masks for the forward pass after `step` optimizer steps."""
        density = self.schedule.density(step, self.config.density)
        if density >= 1:
            for target in targets:
                target.masked.mask.fill_(True)
            return Control()
        scores, key = self.ranked(targets)
        masks = [target.masked.mask for target in targets]
        shards = ranks.Shards.of(scores)
        if shards is not None:
            found = shards.top_v(scores, density, masks, key, self.floor, each=self.scope == "local")
            return Control(sum(cut.value for cut in found) / len(found))
        if self.scope == "global":
            return Control(selection.top_v(scores, density, masks, key, self.floor).value)
        cuts = [
            selection.top_v([score], density, [mask], key).value
            for score, mask in zip(scores, masks, strict=True)
        ]
        return Control(sum(cuts) / len(cuts))

    def penalty(self, targets: Sequence[Target], lambda_: float) -> Tensor | None:
        """What is added to the loss; None where the method has no penalty."""
        return None


class Magnitude(Method):
    """Gradual magnitude pruning (Zhu and Gupta 2018): the score is |W|, read as W trains."""

    def masked_weight(self, weight: Tensor) -> MaskedWeight:
        return MaskedWeight(weight, None)

    def ranked(self, targets: Sequence[Target]) -> tuple[list[Tensor], selection.Key | None]:
        return [target.weight for target in targets], torch.abs


class Movement(Method):
    """Movement pruning (MvP): Top_v of learned scores, straight-through."""


class SoftMovement(Method):
    """Soft movement pruning (SMvP): a threshold on sigmoid(S), a penalty on R(S)."""

    floor = 0.005  # the reference's

    def refresh(self, targets: Sequence[Target], step: int) -> Control:
        ramp = self.schedule.ramp(step)
        if self.config.penalty is not None:
            return self._at_tau(targets, _TAU * ramp, self.config.penalty * ramp)
        control = super().refresh(targets, step)
        if control.threshold is not None:
            wanted = path(ramp, self.start, _logit(_TAU))
            control.lambda_ = controlled_lambda(control.threshold, wanted, ramp, _count(targets))
        return control

    def _at_tau(self, targets: Sequence[Target], tau: float, lambda_: float) -> Control:
        """The paper's mask: 1[sigmoid(S) > tau], with the reference's floor."""
        cut = _logit(tau)
        shards = ranks.Shards.of(target.scores for target in targets)
        if shards is not None:
            masks = [target.masked.mask for target in targets]
            shards.above([target.scores for target in targets], cut, masks, self.floor)
            return Control(None if math.isinf(cut) else cut, lambda_)
        for target in targets:
            mask, scores = target.masked.mask, target.scores.detach()
            torch.gt(scores, cut, out=mask)
            if int(torch.count_nonzero(mask)) < selection.keep_count(self.floor, mask.numel()):
                selection.top_v([scores], self.floor, [mask])
        return Control(None if math.isinf(cut) else cut, lambda_)

    def penalty(self, targets: Sequence[Target], lambda_: float) -> Tensor | None:
        """Lambda * R(S): sigmoid(S) averaged in each matrix, then over the matrices."""
        scores = [target.scores for target in targets]
        return lambda_ * ranks.mean_of_means([torch.sigmoid(ranks.local(s)) for s in scores], scores)


class L0(Method):
    """L0 regularization with hard-concrete gates, sampled in the forward pass."""

    start = hard_concrete.INITIAL

    def masked_weight(self, weight: Tensor) -> MaskedWeight:
        return GatedWeight(weight, self.initial_scores(weight))

    def initial_scores(self, weight: Tensor) -> Tensor:
        """The reference's logit; "magnitude" spreads it, the average weight staying there."""
        scores = super().initial_scores(weight)
        return scores if self.config.score_init == "zero" else scores - 1

    def refresh(self, targets: Sequence[Target], step: int) -> Control:
        if self.config.penalty is not None:  # the threshold stays, lambda is constant
            return Control(hard_concrete.CLOSED, self.config.penalty)
        control = super().refresh(targets, step)
        if control.threshold is not None:
            ramp = self.schedule.ramp(step)
            wanted = path(ramp, self.start, hard_concrete.CLOSED)
            control.lambda_ = controlled_lambda(control.threshold, wanted, ramp, _count(targets))
            # Scores that fell below the closing point would shut gates which the density keeps.
            shift = min(0.0, control.threshold - hard_concrete.CLOSED - 1e-3)
            for target in targets:
                target.masked.offset.fill_(shift)  # type: ignore[operator]
        return control

    def penalty(self, targets: Sequence[Target], lambda_: float) -> Tensor | None:
        """Lambda * E[L0], as a share of the weights: averaged as soft movement's R."""
        scores = [target.scores for target in targets]
        values = [hard_concrete.open_probability(target.masked.logits) for target in targets]  # type: ignore[arg-type]
        return lambda_ * ranks.mean_of_means(values, scores)


class Frozen(Method):
    """The zeros that a model came with stay: the mask is W != 0, from before the first step on."""

    @classmethod
    def plan(cls, config: PruningConfig, total: int) -> Schedule:
        return Schedule.plan(total, 0, 0)._replace(cooldown=total)  # at the final density at once

    @classmethod
    def check(cls, weights: Mapping[str, Tensor]) -> None:
        if all(bool((weight != 0).all()) for weight in weights.values()):
            raise FinepruneError(
                f"method='frozen': none of the {len(weights)} matrices has a zero, so there is nothing to "
                "hold: start from a pruned model, or choose another method"
            )

    def masked_weight(self, weight: Tensor) -> MaskedWeight:
        masked = MaskedWeight(weight, None)
        torch.ne(weight.detach(), 0, out=masked.mask)
        return masked

    def refresh(self, targets: Sequence[Target], step: int) -> Control:
        return Control()


METHODS: dict[str, type[Method]] = {
    "magnitude": Magnitude,
    "l0": L0,
    "movement": Movement,
    "soft_movement": SoftMovement,
    "frozen": Frozen,
}


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if share > 0 else -math.inf


def _count(targets: Sequence[Target]) -> int:
    return sum(target.scores.numel() for target in targets)
