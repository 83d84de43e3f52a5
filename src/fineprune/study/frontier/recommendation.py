"""Choose the model to take under limits, and compare it with the dense ones."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fineprune.errors import FinepruneError
from fineprune.study.frontier.points import BASE, Point
from fineprune.study.frontier.runtimes import commands

USUAL = 1.0
"""Points of the best dense score that may be lost, if nothing is said."""
_ROUNDING = 1e-9
"""Share of a limit; scores are quotients, and a score at the limit keeps to it."""


class Limits(NamedTuple):
    """What a model must keep to; None: anything."""

    within: float | None = None
    """Points of the best dense score that may be lost."""
    max_ms: float | None = None
    max_mb: float | None = None

    def check(self) -> None:
        """Raise `FinepruneError` for limits that nothing can keep."""
        if self.within is not None and not 0 <= self.within < math.inf:
            raise FinepruneError(
                f"within is {self.within:g}, expected 0 or more points of the best dense score, and a finite "
                "number"
            )
        for name, value in (("max-ms", self.max_ms), ("max-mb", self.max_mb)):
            if value is not None and not 0 < value < math.inf:
                raise FinepruneError(f"{name} is {value:g}, expected more than 0, and a finite number")

    def completed(self) -> "Limits":
        """Return the limits, with the usual one if there is none."""
        return Limits(USUAL) if self == Limits() else self

    def __str__(self) -> str:
        said = []
        if self.within is not None:
            points = "point" if self.within == 1 else "points"
            said.append(f"within {self.within:g} {points} of the best dense score")
        said += [f"at most {self.max_ms:g} ms a text"] if self.max_ms is not None else []
        said += [f"at most {self.max_mb:g} MB"] if self.max_mb is not None else []
        return ", ".join(said)


class Choice(NamedTuple):
    """The point to take."""

    limits: Limits
    point: Point
    rival: Point | None
    """The best one of the other kind, dense or pruned, under the same limits."""
    best_dense: float | None
    """The best dense score of torch, in percent."""

    @property
    def run(self) -> Any:
        """The run to copy: of the seeds the one with the best score."""
        return max(self.point.model.runs, key=lambda run: run.results["score"] if run.results else 0.0)

    @property
    def commands(self) -> list[str]:
        """How to make what was measured."""
        return commands(self.point.runtime, self.run.path, self.point.model.dense)

    def lines(self) -> list[str]:
        """Return the recommendation in words."""
        lines = [f"{self.limits}: take {told(self.point, self.best_dense)}"]
        if self.point.model.dense:
            lines.append("a dense model is the better choice here")
        kind = "pruned" if self.point.model.dense else "dense"
        if self.rival is None:
            return [*lines, f"no {kind} model keeps to these limits"]
        ratio = self.rival.milliseconds / self.point.milliseconds
        lines.append(f"the best {kind} one: {told(self.rival, self.best_dense)}; {ratio:.2f} times its time")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "limits": self.limits._asdict(),
            "point": self.point.to_dict(),
            "rival": None if self.rival is None else self.rival.to_dict(),
            "commands": self.commands,
            "said": self.lines(),
        }


def recommend(points: Sequence[Point], limits: Limits) -> Choice:
    """Return the point to take: with `within` the fastest one that keeps to all limits, else the best score.

    Raises:
        FinepruneError: no point keeps to the limits (it names the nearest), or no dense score is known.
    """
    limits.check()
    limits = limits.completed()
    usable = [point for point in points if point.usable]
    dense = best_dense(points)
    if not usable:
        if any(not point.wrong for point in points):
            raise FinepruneError(
                "each of these models gives the same answer to every example: they learned nothing; more "
                "training.steps or another training.learning_rate may help"
            )
        raise FinepruneError("no model was measured whose answers are right; see the reasons above")
    if limits.within is not None and dense is None:
        raise FinepruneError(
            "there is no dense run of this task, so the share of its score cannot be said; name its folder "
            "too, or give --max-ms or --max-mb instead of --within"
        )
    possible = [point for point in usable if _excess(point, limits, dense) <= _ROUNDING]
    if not possible:
        nearest = min(usable, key=lambda point: _excess(point, limits, dense))
        raise FinepruneError(f"nothing measured is {limits}; the nearest is {told(nearest, dense)}")
    order = _fastest if limits.within is not None else _best
    point = min(possible, key=order)
    others = [other for other in possible if other.model.dense != point.model.dense]
    return Choice(limits, point, min(others, key=order, default=None), dense)


def best_dense(points: Sequence[Point]) -> float | None:
    """Return the best score of a dense model in torch, in percent; None without one."""
    scores = [point.score for point in points if point.model.dense and point.runtime == BASE and point.usable]
    return max(scores, default=None)


def told(point: Point, dense: float | None) -> str:
    """Return a point in words."""
    lost = "" if dense is None else f" ({point.score - dense:+.1f} against dense)"
    memory = "" if point.memory is None else f", {point.memory:.0f} MB of memory"
    return (
        f"{point.model.name} in {point.runtime}: {point.model.group.metric} {point.score:.1f}{lost}, "
        f"{point.milliseconds:.2f} ms a text, {point.megabytes:.1f} MB{memory}"
    )


def _fastest(point: Point) -> tuple[float, float]:
    return point.milliseconds, -point.score


def _best(point: Point) -> tuple[float, float]:
    return -point.score, point.milliseconds


def _excess(point: Point, limits: Limits, dense: float | None) -> float:
    """Return how far a point is beyond the limits, as a share of the limit; 0 or less: not."""
    beyond = []
    if limits.within is not None and dense is not None:
        beyond.append((dense - limits.within - point.score) / max(dense, 1e-9))
    if limits.max_ms is not None:
        beyond.append(point.milliseconds / limits.max_ms - 1)
    if limits.max_mb is not None:
        beyond.append(point.megabytes / limits.max_mb - 1)
    return max(beyond)
