"""Gradual magnitude pruning (Zhu and Gupta 2018, arXiv:1710.01878)."""

from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.score_rules import WeightSize


class Magnitude(Method):
    """Gradual magnitude pruning: the score is |W|, read as W trains."""

    def parts(self) -> Parts:
        return Parts(rule=WeightSize())
