"""Soft movement pruning (Sanh, Wolf and Rush 2020)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fineprune.pruning import selection
from fineprune.pruning.density_control import controlled_lambda, path
from fineprune.pruning.distributed import ranks
from fineprune.pruning.methods.base import Control, Method, Target, count_scores

_TAU = 0.1  # sigmoid(S) > tau is kept, and tau ends here


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
            control.lambda_ = controlled_lambda(control.threshold, wanted, ramp, count_scores(targets))
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


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if share > 0 else -math.inf
