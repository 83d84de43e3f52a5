"""What the methods share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fineprune.config import PruningConfig
from fineprune.pruning import selection
from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.schedule import Schedule


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


def count_scores(targets: Sequence[Target]) -> int:
    return sum(target.scores.numel() for target in targets)
