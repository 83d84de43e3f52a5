"""SMP, static model pruning (Jiang et al. 2023, arXiv:2210.06210): scores learn, weights stay.

Scores start at 0 and move as those of movement pruning; the mask is their exact Top_v, by default with the
density shared out inside each kind of matrix (scope "type"); the loss gets lambda(t)·R(S), lambda rising to
400 by Eq. 5. The authors read classes as words of the masked-LM head; here the model's own head trains beside
the scores, since a sentence model has none.
"""

from dataclasses import replace

from fineprune.errors import FinepruneError
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.methods.soft_movement import MeanSigmoid
from fineprune.pruning.score_rules import Learned

_LAMBDA = 400.0


class Smp(Method):
    """Movement pruning of frozen weights."""

    def parts(self) -> Parts:
        if not self.config.freeze_embeddings:
            raise FinepruneError(
                "freeze_embeddings=false: smp trains no weight of the body; leave it out, or choose movement"
            )
        scores = replace(self.config, score_init=self.config.score_init or "zero")
        return Parts(rule=Learned(scores), penalty=MeanSigmoid(), lambda_=_LAMBDA)
