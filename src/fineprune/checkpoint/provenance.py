"""How a saved model was made and what it scored: a part of fineprune.json and of the model card."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.pruner import Pruner


@dataclass(frozen=True)
class Provenance:
    """The history of a model, as far as its author gives it; None where unknown.

    Raises:
        FinepruneError: for a score that is not a finite number.
    """

    scores: Mapping[str, float] | None = None
    dense_scores: Mapping[str, float] | None = None
    """The scores of the model before pruning."""

    command: str | None = None
    config: PruningConfig | None = None

    def __post_init__(self) -> None:
        for name in ("scores", "dense_scores"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))

    def completed_by(self, model: Any) -> Self:
        """Return the same with the config of `model` where none was given and `model` is a pruner."""
        if self.config is None and isinstance(model, Pruner):
            return replace(self, config=model.config)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of fineprune.json."""
        return {
            "pruning": None if self.config is None else self.config.to_dict(),
            "scores": self.scores,
            "dense_scores": self.dense_scores,
            "command": self.command,
        }


def _plain(name: str, scores: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Return the scores as Python floats, whatever kind of number each is."""
    if scores is None:
        return None
    plain = {}
    for metric, score in scores.items():
        try:
            plain[metric] = float(score)
        except (TypeError, ValueError):
            plain[metric] = math.nan
        if not math.isfinite(plain[metric]):
            raise FinepruneError(f"{name}: {metric} is {score!r}; give a finite number")
    return plain
