"""What a method is made of: parts with defaults, and the loop that every method shares.

A method is a subclass of `Method` that says which parts differ from the defaults, in `parts`. Nothing else of
it is overridden, so a method is read in its own file. `config.METHODS` has the list.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.density_control import controlled_lambda, path
from fineprune.pruning.distributed import ranks
from fineprune.pruning.followers import Follower
from fineprune.pruning.kind_budgets import densities
from fineprune.pruning.latency import share_of_units
from fineprune.pruning.levels import cut_inside, inside
from fineprune.pruning.masked_weight import Decayed, Form, Gate, MaskedWeight, WeightGradient
from fineprune.pruning.schedule import Schedule
from fineprune.pruning.score_rules import ScoreRule
from fineprune.pruning.selection import round_count
from fineprune.pruning.structures import rankings
from fineprune.pruning.target import Target, size_of
from fineprune.pruning.units import Grid
from fineprune.structure import Level


@dataclass
class Control:
    """What the last refresh set: the threshold (None: nothing is cut) and lambda.

    Attributes:
        outer: The same of the outer level, where there is one.
    """

    threshold: float | None = None
    lambda_: float = 0.0
    outer: "Control | None" = None

    @property
    def pushes(self) -> bool:
        """Whether a penalty belongs in the loss."""
        return self.lambda_ > 0 or (self.outer is not None and self.outer.pushes)


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""

    def check(self, config: PruningConfig) -> None:
        """Raise `FinepruneError` where the options do not fit the common settings."""


class Penalty(ABC):
    """A regularizer R(S) that pushes scores below the threshold.

    Attributes:
        start, end: Where the threshold of a controlled run begins and ends, in units of score.
    """

    start: ClassVar[float]
    end: ClassVar[float]

    @abstractmethod
    def value(self, targets: Sequence[Target]) -> Tensor:
        """Return R(S), a scalar."""

    @abstractmethod
    def fixed(self, targets: Sequence[Target], ramp: float, penalty: float) -> Control:
        """Set the masks of a run with the paper's fixed lambda, at `ramp` (0 to 1) of the schedule."""


def mean_over_units(values: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
    """Return a mean of `values`, which have an entry a unit: of elements the mean of the matrices' means.

    Units of several weights count by what they cost of the budget, or small grids would be pushed harder.
    """
    grids = [target.masked.grid for target in targets]
    if any(target.masked.within for target in targets):  # of an inner level, what the outer one keeps
        living = [value for value, _ in inside(values, targets) if value.numel()]
        return torch.stack([ranks.mean(value).to(values[0].device) for value in living]).mean()
    if all(grid.is_elements for grid in grids):
        return ranks.mean_of_means(values, [target.scores for target in targets])
    device = values[0].device
    sums = [value.sum().to(device) * grid.cost for value, grid in zip(values, grids, strict=True)]
    total = sum(value.numel() * grid.cost for value, grid in zip(values, grids, strict=True))
    return torch.stack(sums).sum() / total


def gradual(config: PruningConfig, total: int) -> Schedule:
    """Plan Eq. 5 with the warm-up and cool-down of the config."""
    return Schedule.plan(total, config.warmup, config.cooldown)


CHANGES_VALUES = "changes the values of the weights that remain"
"""Why a method takes no frozen weights, after its name."""


def refuse_frozen(weights: Mapping[str, Tensor], reason: str = "it has no gradient to rank by") -> None:
    """Raise `FinepruneError` for weights, by name, that are not trained."""
    for name, weight in weights.items():
        if not weight.requires_grad:
            raise FinepruneError(
                f"{name}: is frozen, and {reason}; train it (requires_grad), or leave it out with exclude"
            )


class State(Protocol):
    """Extra state of a method, which checkpoints hold as plain values (JSON)."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any) -> None:
        """Take back what `state_dict` returned."""


@dataclass(frozen=True)
class Parts:
    """The parts of a method.

    Attributes:
        rule: How scores start and move, and what is ranked; None where nothing is ranked and the first masks
            stay.
        units: Makes the grid of a matrix, from its name and weight; None: as `PruningConfig.structure` says.
        gate: Makes the gate of a matrix from its weight; None for none.
        form: Makes the form of a matrix, which makes W' of W and its mask, from its weight; None: W ⊙ M.
        set_forms: Is called with the targets and the steps done after masks were refreshed.
        weight_gradient: What pruned weights get of the gradient: nothing ("masked"), theirs ("dense"), or a
            share that may fall with the density (`Decayed`).
        floor: The share of each matrix that a global ranking leaves it; not of heads and neurons.
        penalty: What the loss gets beside the task's; None for none.
        lambda_: The factor of the penalty at the end of the schedule where the config gives none; None: it is
            controlled such that the threshold follows its path.
        fades: Whether that factor falls from its value to 0 over the cool-down.
        plan: Makes the schedule of a run of so many steps.
        first_mask: Makes the mask before the first step from the weight; None keeps everything.
        check: Raises `FinepruneError` for weights, by name, that the method can do nothing with.
        attach: Is called with the optimizer that trains the weights and the targets, where the method changes
            the optimizer's steps; None where it does not.
        weight_decay: Whether the optimizer may decay pruned weights; else that is refused.
        after_cut: Is called with the targets after masks were refreshed.
        modules: Makes modules that train beside the model and go at `finalize`, by name, from the model.
        state: Holds extra state that is no tensor of a matrix; None for none.
    """

    rule: ScoreRule | None
    units: Callable[[str, Tensor], Grid] | None = None
    gate: Callable[[Tensor], Gate] | None = None
    form: Callable[[Tensor], Form] | None = None
    set_forms: Callable[[Sequence[Target], int], None] = field(default=lambda targets, steps: None)
    weight_gradient: WeightGradient = "masked"
    floor: float = 0.0
    penalty: Penalty | None = None
    lambda_: float | None = None
    fades: bool = False
    plan: Callable[[PruningConfig, int], Schedule] = gradual
    first_mask: Callable[[Tensor], Tensor] | None = None
    check: Callable[[Mapping[str, Tensor]], None] = field(default=lambda weights: None)
    attach: Callable[[torch.optim.Optimizer, Sequence[Target]], None] | None = None
    weight_decay: bool = True
    after_cut: Callable[[Sequence[Target]], None] = field(default=lambda targets: None)
    modules: Callable[[nn.Module], Mapping[str, nn.Module]] = field(default=lambda model: {})
    state: State | None = None


class Method(ABC):
    """A pruning method for one run: its parts, made from the config, and its schedule."""

    Options: ClassVar[type[Any]] = NoOptions
    """The frozen dataclass of the settings that this method alone has."""

    def __init__(self, config: PruningConfig, total: int) -> None:
        self.config = config
        self.total = total
        self.options = self.Options() if config.options is None else config.options
        self.scope = config.scope or config.traits.scopes[0]
        self.bundle = self.parts()
        self.schedule = self.bundle.plan(config, total)

    @abstractmethod
    def parts(self) -> Parts:
        """Return the parts, from `self.config`, `self.options` and the number of steps, `self.total`."""

    @final
    def masked_weight(self, weight: Tensor, grid: Grid, followers: tuple[Follower, ...] = ()) -> MaskedWeight:
        """Return the parametrization of one weight."""
        bundle = self.bundle
        scores, statistics = None, None
        if bundle.rule is not None:
            size = size_of(weight, grid, followers)
            scores, statistics = bundle.rule.start(size), bundle.rule.statistics(size)
        gate = None if bundle.gate is None else bundle.gate(weight)
        masked = MaskedWeight(weight, scores, grid, gate, bundle.weight_gradient, statistics, followers)
        if bundle.form is not None:
            masked.form = bundle.form(weight)
        if bundle.first_mask is not None:
            masked.mask.copy_(bundle.first_mask(weight))
        return masked

    @final
    def refresh(self, targets: Sequence[Target], step: int, outer: Sequence[Target] = ()) -> Control:
        """Set the masks for the forward pass after `step` optimizer steps.

        Args:
            targets: The pruned weights.
            step: The number of optimizer steps.
            outer: Those of the outer level, which is cut first, where there is one.
        """
        rule, config = self.bundle.rule, self.config
        if rule is None:
            return Control()
        if config.controlled:
            levels = config.levels
            above = self._at_density(rule, outer, step, levels[0]) if outer else None
            control = self._at_density(rule, targets, step, levels[-1])
            control.outer = above
        else:
            assert self.bundle.penalty is not None
            assert config.penalty is not None
            control = self.bundle.penalty.fixed(targets, self.schedule.ramp(step), config.penalty)
        left = self.total - step
        if self.bundle.fades and left < self.schedule.cooldown:
            for level in filter(None, (control, control.outer)):
                level.lambda_ *= left / self.schedule.cooldown
        given = self.bundle.weight_gradient
        for target in (*outer, *targets):
            target.masked.spread()
            if isinstance(given, Decayed):
                target.masked.get_buffer("flow").fill_(given.share(self.schedule.ramp(step)))
        self.bundle.after_cut([*outer, *targets])
        self.bundle.set_forms(targets, step)
        return control

    @final
    def penalty(
        self, targets: Sequence[Target], control: Control, outer: Sequence[Target] = ()
    ) -> Tensor | None:
        """Return lambda * R(S) of each level, which is added to the loss; None where there is none."""
        penalty = self.bundle.penalty
        if penalty is None or not control.pushes:
            return None
        levels = [(targets, control), *([(outer, control.outer)] if control.outer else [])]
        values = [entry.lambda_ * penalty.value(members) for members, entry in levels if entry.lambda_ > 0]
        return torch.stack(values).sum() if len(values) > 1 else values[0]

    def _at_density(self, rule: ScoreRule, targets: Sequence[Target], step: int, level: Level) -> Control:
        """Keep the scheduled density; lambda is fixed, or leads the threshold along its path."""
        config = self.config
        initial = config.initial_density ** (0.5 if level.derived else 1)
        thresholds = []
        for indices, goal in rankings([target.masked.grid for target in targets], level, config.density):
            ranked = [targets[index] for index in indices]
            density = self.schedule.density(step, goal, max(goal, initial))
            if density < 1:
                cuts = [self._cut(rule, ranked, stop) for stop in rule.stops(ranked, density)]
                thresholds += cuts[-1]
            else:
                for target in ranked:
                    target.masked.units.fill_(True)
        if not thresholds:
            return Control()
        threshold = sum(thresholds) / len(thresholds)
        penalty = self.bundle.penalty
        if penalty is None:
            return Control(threshold)
        ramp = self.schedule.ramp(step)
        fixed = self.bundle.lambda_ if config.penalty is None else config.penalty
        if fixed is not None:
            return Control(threshold, fixed * ramp)
        units = sum(value.numel() for value, _ in inside([target.scores for target in targets], targets))
        wanted = path(ramp, penalty.start, penalty.end)
        return Control(threshold, controlled_lambda(threshold, wanted, ramp, units))

    def _cut(self, rule: ScoreRule, targets: Sequence[Target], density: float) -> list[float]:
        """Keep the highest units (Eq. 1), ranked together or matrix by matrix; return the mean threshold.

        Of an inner level those are ranked that the outer one keeps, and `density` is a share of all: none is
        cut where the outer level keeps no more than that.
        """
        ranked = rule.ranked(targets)
        flags = [target.masked.units for target in targets]
        grids = [target.masked.grid for target in targets]
        floor = 0.0 if any(grid.may_be_empty for grid in grids) else self.bundle.floor
        costs = [grid.times or grid.cost for grid in grids]
        density = share_of_units(grids, density)
        rank, local = ranks.of(ranked.tensors), self.scope == "local"
        if any(target.masked.within for target in targets):
            cuts = cut_inside(ranked, targets, density, floor, local)
        elif self.scope == "type":
            shares = densities(targets, density)
            alone = zip(ranked.tensors, shares, flags, strict=True)
            cuts = [rank.top_v([tensor], share, [flag], ranked.key)[0] for tensor, share, flag in alone]
        else:
            cuts = rank.top_v(ranked.tensors, density, flags, ranked.key, floor, local, costs)
        if self.config.round_to > 1:
            for grid, scores, flag in zip(grids, ranked.tensors, flags, strict=True):
                if grid.kind == "neuron":
                    round_count(scores, flag, self.config.round_to)
        if not cuts:
            return []
        threshold = sum(cut.value for cut in cuts) / len(cuts)
        for target, flag in zip(targets, flags, strict=True):
            if target.masked.gate is not None:
                rounded = self.config.round_to > 1 and target.masked.within is None
                kept = target.scores[flag] if rounded else None  # may be below the cut
                target.gate.follow(threshold if kept is None or not len(kept) else float(kept.min()))
        return [threshold]
