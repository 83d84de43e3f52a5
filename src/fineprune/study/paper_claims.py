"""Check the claims of the paper about its methods on the rows of a study.

A method wins where its mean over its seeds is the highest of those measured on the same task, at the
same density, with the same teacher or none; with a teacher against without, and global against local, the
seeds count that both have. Scores that differ by less than the standard error of their difference are too
close to tell, and decide nothing. Where no run is of a claim's kind, it is not tested, and not guessed.
"""

import math
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Literal, NamedTuple

from fineprune.config import METHODS
from fineprune.study.grid import DENSE
from fineprune.study.grouping import Group, Row, groups, share

Verdict = Literal["held", "not held", "not tested at this scale"]
CLOSE = 1.0
"""Points up to which global and local selection count as close."""
EVEN = 1.5
"""Layers are evenly pruned if the fullest has at most this many times the density of the emptiest."""

FIRST_ORDER = tuple(name for name, traits in METHODS.items() if traits.order == 1 and traits.in_paper)


class Claim(NamedTuple):
    """An ordering of the paper, whether it held, and the numbers."""

    text: str
    verdict: Verdict
    numbers: tuple[str, ...]


class _Case(NamedTuple):
    """One place where a claim can be tested."""

    held: bool | None
    """None: too close to tell."""

    numbers: str


def claims(rows: Iterable[Row]) -> list[Claim]:
    """Return the claims listed at the end of the paper's page in the specification, in its order."""
    every = [group for group in groups(rows) if group.finished]
    pruned = [group for group in every if group.cell.method != DENSE]
    checks: list[tuple[str, list[_Case]]] = [
        ("above 70 % density magnitude wins", _wins(pruned, lambda v: v > 0.7, ("magnitude",))),
        ("below 15 % density first-order methods win", _wins(pruned, lambda v: v < 0.15, FIRST_ORDER)),
        ("soft movement is best at 3 %", _wins(pruned, lambda v: v == 0.03, ("soft_movement",))),
        ("distillation lifts all", _lifts(pruned)),
        (
            "soft movement with distillation keeps 95 % of dense at 5 % density (SQuAD, MNLI)",
            _keeps(pruned, every),
        ),
        (
            f"local and global selection are close above 3 % density (within {CLOSE:g} point)",
            _scopes(pruned, lambda v: v > 0.03, lambda gap: abs(gap) <= CLOSE),
        ),
        (
            f"at 3 % global selection is ahead of local (by more than {CLOSE:g} point)",
            _scopes(pruned, lambda v: v == 0.03, lambda gap: gap > CLOSE),
        ),
        ("global first-order methods keep more in low layers", _low_layers(pruned)),
        (
            f"global magnitude prunes layers evenly (fullest / emptiest up to {EVEN:g})",
            _evenly(pruned),
        ),
    ]
    swaps = "when kept connections are swapped, the training loss does not rise"
    return [
        *(_judged(text, cases) for text, cases in checks),
        Claim(swaps, "not tested at this scale", ("tests/pruning tests it",)),
    ]


def as_lines(found: Iterable[Claim]) -> str:
    """Return the claims as a list in Markdown."""
    parts = []
    for claim in found:
        parts.append(f"- {claim.text}: **{claim.verdict}**")
        parts += [f"  - {numbers}" for numbers in claim.numbers]
    return "\n".join(parts) + "\n"


def _judged(text: str, cases: list[_Case]) -> Claim:
    """Return a claim, which holds if it does in every case that is not too close to tell."""
    if not cases:
        return Claim(text, "not tested at this scale", ())
    decided = [case for case in cases if case.held is not None]
    held, close = sum(bool(case.held) for case in decided), len(cases) - len(decided)
    verdict: Verdict = "held" if held == len(decided) else "not held"
    counts = f"{held} of {len(decided)} cases" * bool(decided), f"{close} too close to tell" * bool(close)
    count = "; ".join(filter(None, counts))
    words = {True: "yes", False: "no", None: "close"}
    lines = (f"{words[case.held]}: {case.numbers}" for case in cases)
    return Claim(text, verdict if decided else "not tested at this scale", (count, *lines))


def _wins(pruned: list[Group], fits: Callable[[float], bool], winners: tuple[str, ...]) -> list[_Case]:
    """Return a case for each place with one of `winners` and another method: whether the best is a winner."""
    cases = []
    for place, members in _places(pruned, fits).items():
        inside = [group for group in members if group.cell.method in winners]
        if not inside or len(inside) == len(members):
            continue
        ranked = sorted(members, key=lambda group: (group.learned, _mean(group)), reverse=True)
        best = next(group for group in ranked if group in inside)
        rival = next(group for group in ranked if group not in inside)
        cases.append(_Case(_better(best, rival), f"{place}: {', '.join(map(_told, ranked))}"))
    return cases


def _lifts(pruned: list[Group]) -> list[_Case]:
    """Return a case for each method with a teacher against itself without one."""
    cases = []
    for group in pruned:
        cell = group.cell
        if not cell.distillation:
            continue
        key = (cell.task, cell.method, cell.density, cell.scope)
        for other in pruned:
            plain = other.cell
            same = (plain.task, plain.method, plain.density, plain.scope) == key
            if not plain.distillation and same and (pair := _paired(group, other)):
                taught, alone = pair
                told = f"{_where(group, teacher=False)}: {_told(alone)}, with a teacher {_value(taught)}"
                cases.append(_Case(_ahead(taught, alone), told))
    return cases


def _keeps(pruned: list[Group], every: list[Group]) -> list[_Case]:
    cases = []
    for group in pruned:
        cell = group.cell
        kind = (cell.method, cell.density, cell.distillation)
        if cell.task not in ("squad", "mnli") or kind != ("soft_movement", 0.05, True):
            continue
        kept = share(group, every)
        if kept is not None:
            cases.append(_Case(kept >= 0.95, f"{_where(group)}: {_told(group)}, {kept:.1%} of dense"))
    return cases


def _scopes(
    pruned: list[Group], fits: Callable[[float], bool], judge: Callable[[float], bool]
) -> list[_Case]:
    """Return cases of global against local selection by methods with both; the gap is in points."""
    cases = []
    for place, members in _places(pruned, fits).items():
        local = {_apart(group): group for group in members if group.cell.scope is None}
        for group in members:
            other = local.get(_apart(group))
            if group.cell.scope == "global" and other is not None and (pair := _paired(group, other)):
                gap, error = _gap(*pair)
                told = f"{place}: {_told(pair[0])}, local {_value(pair[1])}, gap {gap:+.1f}"
                sure = judge(gap - error) == judge(gap) == judge(gap + error)
                cases.append(_Case(judge(gap) if sure else None, told))
    return cases


def _apart(group: Group) -> tuple[str | None, ...]:
    return group.cell.method, group.cell.structure, group.cell.variant


def _low_layers(pruned: list[Group]) -> list[_Case]:
    """Return cases of the lower half of layers against the upper, of methods with global selection."""
    cases = []
    for group in pruned:
        layers = _layers(group)
        if group.cell.method in FIRST_ORDER and layers:
            low, high = fmean(layers[: len(layers) // 2]), fmean(layers[-(len(layers) // 2) :])
            cases.append(_Case(low > high, _told_layers(group, layers)))
    return cases


def _evenly(pruned: list[Group]) -> list[_Case]:
    """Return cases of the fullest layer against the emptiest, of magnitude among all matrices."""
    cases = []
    for group in pruned:
        layers = _layers(group)
        if group.cell.method == "magnitude" and layers:
            cases.append(_Case(max(layers) <= EVEN * min(layers), _told_layers(group, layers)))
    return cases


def _layers(group: Group) -> list[float]:
    """Return the density of each layer, a mean over seeds; [] if selection is local or none is known."""
    known = [row.layers for row in group.rows if len(row.layers) > 1 and row.results is not None]
    if group.cell.selection != "global" or not known:
        return []
    return [fmean(densities) for densities in zip(*known, strict=True)]


def _told_layers(group: Group, layers: list[float]) -> str:
    told = ", ".join(f"{100 * density:.1f}" for density in layers)
    return f"{_where(group)}: {group.label}, from the first layer {told} %"


def _better(one: Group, other: Group) -> bool | None:
    """Return whether the first wins; None: too close. What learned nothing never wins, whatever its score."""
    if one.learned and other.learned:
        return _ahead(one, other)
    return one.learned if one.learned != other.learned else None


def _ahead(one: Group, other: Group) -> bool | None:
    """Return whether the first scores higher; None if they are too close to tell."""
    gap, error = _gap(one, other)
    return None if abs(gap) < error else gap > 0


def _gap(one: Group, other: Group) -> tuple[float, float]:
    """Return the lead of the first, and the standard error of that, in points.

    The standard error of a mean of n values in [0, 1] is at most sqrt(p (1 - p) / n), and that of the
    difference at most both together where, as here, both are of the same data and rise with each other.
    """
    return _mean(one) - _mean(other), math.hypot(_standard_error(one), _standard_error(other))


def _standard_error(group: Group) -> float:
    """Return it in points; 0 without a number of examples, or if the metric is no mean of such values."""
    count, share = group.finished[0]["examples"].get("validation"), _mean(group) / 100
    if not count or not 0 <= share <= 1:
        return 0.0
    return 100 * math.sqrt(share * (1 - share) / count)


def _places(pruned: list[Group], fits: Callable[[float], bool]) -> dict[str, list[Group]]:
    """Return the groups by task, density and teacher, of the densities that fit."""
    by_place: dict[str, list[Group]] = {}
    for group in pruned:
        if group.cell.density is not None and fits(group.cell.density):
            by_place.setdefault(_where(group), []).append(group)
    return by_place


def _paired(one: Group, other: Group) -> tuple[Group, Group] | None:
    """Return both with the seeds that both have finished; None without a common seed."""
    done = [{row.cell.seed for row in group.rows if row.results is not None} for group in (one, other)]
    seeds = done[0] & done[1]
    if not seeds:
        return None
    first, second = (
        Group(group.cell, [row for row in group.rows if row.cell.seed in seeds]) for group in (one, other)
    )
    return first, second


def _where(group: Group, teacher: bool = True) -> str:
    cell = group.cell
    taught = ", with a teacher" if teacher and cell.distillation else ""
    return f"{cell.task} at {100 * (cell.density or 1):g} %{taught}"


def _mean(group: Group) -> float:
    """Return the mean in the main metric; the groups here have results."""
    mean = group.mean(group.metric or "")
    assert mean is not None
    return mean


def _value(group: Group) -> str:
    deviation, seeds = group.deviation(group.metric or ""), len(group.finished)
    spread = "" if deviation is None else f" ± {deviation:.1f}"
    return f"{_mean(group):.1f}{spread} ({seeds} seed{'s' if seeds > 1 else ''})"


def _told(group: Group) -> str:
    return f"{group.label} {_value(group)}" + (f", {group.remark}" if group.remark else "")
