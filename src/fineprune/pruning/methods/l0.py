"""L0 regularization (Louizos, Welling and Kingma 2018)."""

from collections.abc import Sequence

from torch import Tensor

from fineprune.pruning import hard_concrete
from fineprune.pruning.density_control import controlled_lambda, path
from fineprune.pruning.distributed import ranks
from fineprune.pruning.masked_weight import GatedWeight, MaskedWeight
from fineprune.pruning.methods.base import Control, Method, Target, count_scores


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
            control.lambda_ = controlled_lambda(control.threshold, wanted, ramp, count_scores(targets))
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
