"""Select the exact Top_v (Eq. 1) over one matrix or many, without sorting and without a copy.

The threshold is the k-th highest score. A sample brackets it; one pass over the scores counts those above the
bracket and gathers the few inside; the k-th is found among those. The result is exact for any sample: a
bracket that missed is widened and counted again. Counts add up, so scores may be spread over any number of
tensors and devices.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fineprune.errors import FinepruneError

_DIRECT = 1 << 14  # up to this number, scores are simply ranked
_SAMPLE = 1 << 18  # most scores sampled to place the bracket; of fewer scores, one in sixteen
_CHUNK = 1 << 20  # scores per piece: their flags stay in the cache
_MOST_SORTED = 1 << 20  # most units of different cost, which are sorted
_MARGIN = 3.0  # half width of the bracket, in standard errors of the sample's rank


class Threshold(NamedTuple):
    """The cut of Top_v: scores above `value` stay, and the first `ties` of those equal to it."""

    value: float
    ties: int
    equal: int
    """The number of scores equal to `value`; with `ties == equal` the mask is simply score >= value."""


Key = Callable[[Tensor], Tensor]
Cost = float | tuple[float, ...]
"""What each unit of a matrix costs; of a tuple the first is that of the best unit, and so on."""


def keep_count(density: float, total: int) -> int:
    """Return the number of the `total` units that stay: round(v * n), at least 1."""
    return min(total, max(1, round(density * total)))


def top_v(
    scores: Sequence[Tensor],
    density: float,
    masks: Sequence[Tensor],
    key: Key | None = None,
    floor: float = 0.0,
) -> Threshold:
    """Write into `masks` (bool, shaped as `scores`) the Top_v of all `scores` ranked together.

    Exactly `keep_count` entries become True. Among equal scores the lower flat index wins, and the earlier
    tensor.

    Args:
        scores: the scores, one tensor per matrix.
        density: the share of all scores that stays.
        masks: the tensors to write.
        key: a function such as `torch.abs`. It is applied to pieces of the scores, so that a derived score
            needs no copy.
        floor: the share of itself that each tensor keeps at least; the others give up as many.

    Returns:
        The threshold; with a `floor`, that of the tensors which are above their floor.

    Raises:
        FinepruneError: the scores are NaN, as after a divergence. A single NaN that the sample misses ranks
            lowest.
    """

    def select(rankings: Sequence[Sequence[int]], keeps: Sequence[int]) -> list[Threshold]:
        thresholds = []
        for ranking, keep in zip(rankings, keeps, strict=True):
            ranked = [scores[i] for i in ranking]
            thresholds.append(find_threshold(ranked, keep, key))
            fill_masks([masks[i] for i in ranking], ranked, thresholds[-1], key)
        return thresholds

    def kept(of: Sequence[Tensor]) -> list[int]:
        return [int(torch.count_nonzero(mask)) for mask in of]

    return select_together(masks, [entry.numel() for entry in scores], density, floor, select, kept)


def select_together(
    masks: Sequence[Tensor],
    sizes: Sequence[int],
    density: float,
    floor: float,
    select: Callable[[Sequence[Sequence[int]], Sequence[int]], list[Threshold]],
    kept: Callable[[Sequence[Tensor]], list[int]],
) -> Threshold:
    """Select for `top_v`, again without the tensors that were given their floor until none falls below it.

    This also serves `Shards`, where each process has a part of every matrix.

    Args:
        masks: the masks, or the parts of them in this process.
        sizes: the entries of each complete matrix.
        density: as in `top_v`.
        floor: as in `top_v`.
        select: ranks the matrices of each list of indices together, and writes their masks with the number of
            True entries that is given for the list.
        kept: counts the True entries of each mask.
    """
    keep, floors = keep_count(density, sum(sizes)), [int(min(floor, density) * size) for size in sizes]
    ranked = list(range(len(sizes)))
    while True:
        (threshold,) = select([ranked], [keep])
        if not any(floors):
            return threshold
        counts = kept([masks[i] for i in ranked])
        low = [i for i, count in zip(ranked, counts, strict=True) if count < floors[i]]
        select([[i] for i in low], [floors[i] for i in low])
        keep -= sum(floors[i] for i in low)
        ranked = [i for i in ranked if i not in low]
        if not low or not ranked:
            return threshold
        if keep == 0:
            for i in ranked:
                masks[i].fill_(False)
            return threshold


@torch.no_grad()
def top_v_by_cost(
    scores: Sequence[Tensor],
    costs: Sequence[Cost],
    density: float,
    masks: Sequence[Tensor],
    key: Key | None = None,
) -> Threshold:
    """Write into `masks` the units of highest score whose costs add up to the share `density` of all costs.

    Units are taken in the order of `top_v`. The next one, of cost k, is kept while at least k / 2 of the
    budget remains; the first that is not ends the selection, so that a threshold divides the units. At least
    one unit stays.

    Args:
        scores: One tensor per matrix.
        costs: The cost of the units of each matrix.
        density: The share of the cost of all units that stays.
        masks: Bool, shaped as the scores.
        key: As in `top_v`.

    Raises:
        FinepruneError: There are more than 2^20 units, or scores are NaN.
    """
    sizes = [entry.numel() for entry in scores]
    if sum(sizes) > _MOST_SORTED:
        raise FinepruneError(
            f"{sum(sizes):,} units of different cost in one ranking; at most {_MOST_SORTED:,} can be ranked "
            "together: "
            "give each part of the model a density of its own, or rank matrix by matrix"
        )
    device = scores[0].device
    ranked = torch.cat([piece.to(device) for piece in pieces(scores, key)])
    if bool(ranked.isnan().any()):
        raise not_a_number(int(torch.count_nonzero(ranked.isnan())))
    cost = torch.cat([_cost_of_each(one, part) for one, part in zip(costs, ranked.split(sizes), strict=True)])
    order = ranked.argsort(descending=True, stable=True)
    spent = cost[order].cumsum(0)
    budget = density * float(spent[-1])
    affordable = budget - (spent - cost[order]) >= cost[order] / 2
    count = max(1, int(affordable.long().cumprod(0).sum()))
    flags = torch.zeros(len(ranked), dtype=torch.bool, device=device)
    flags[order[:count]] = True
    for mask, part in zip(masks, flags.split(sizes), strict=True):
        mask.copy_(part.view(mask.shape))
    value = float(ranked[order[count - 1]])
    equal = int(torch.count_nonzero(ranked == value))
    return Threshold(value, count - int(torch.count_nonzero(ranked > value)), equal)


def _cost_of_each(cost: Cost, scores: Tensor) -> Tensor:
    """Return the cost of each unit of one matrix, float64."""
    found = torch.empty(len(scores), dtype=torch.float64, device=scores.device)
    if not isinstance(cost, tuple):
        return found.fill_(cost)
    found[scores.argsort(descending=True, stable=True)] = found.new_tensor(cost)
    return found


def is_mixed(costs: Sequence[Cost]) -> bool:
    """Return whether units of these costs cannot be ranked by their number alone."""
    return len(set(costs)) > 1 or any(isinstance(cost, tuple) for cost in costs)


@torch.no_grad()
def round_count(scores: Tensor, mask: Tensor, multiple: int) -> None:
    """Round the number of True entries of `mask` to a multiple, by the next best or the worst scores.

    An empty mask stays empty; any other keeps one multiple at least, if there are as many entries.
    """
    count, total = int(torch.count_nonzero(mask)), mask.numel()
    wanted = min(max(1, round(count / multiple)) * multiple, total // multiple * multiple or total)
    if count and wanted != count:
        fill_masks([mask], [scores], find_threshold([scores], wanted))


@torch.no_grad()
def find_threshold(scores: Sequence[Tensor], keep: int, key: Key | None = None) -> Threshold:
    """Return the threshold that keeps exactly the `keep` highest of all `scores`, 1 <= keep <= total."""
    total = sum(entry.numel() for entry in scores)
    if not 1 <= keep <= total:
        raise FinepruneError(f"keep={keep}: must be between 1 and the number of scores, {total}")
    if total <= _DIRECT:
        return _kth(torch.cat([piece.to(scores[0].device) for piece in pieces(scores, key)]), keep)
    sample = _sample(scores, total, key)
    if bool(sample.isnan().any()):
        raise not_a_number(_count_nan(scores))
    margin = _MARGIN
    while True:
        low, high = _bracket(sample, keep / total, margin)
        at_least_high, inside = _scan(scores, low, high, key)
        if at_least_high < keep <= at_least_high + len(inside):
            return _kth(inside, keep - at_least_high)
        # The bracket missed, or one of its ends is the threshold (many equal scores).
        end = high if keep <= at_least_high else low
        above, equal = _count(scores, end, key)
        if above < keep <= above + equal:
            return Threshold(end, keep - above, equal)
        if low == -math.inf and high == math.inf:
            raise not_a_number(_count_nan(scores))
        margin *= 4


@torch.no_grad()
def fill_masks(
    masks: Sequence[Tensor], scores: Sequence[Tensor], threshold: Threshold, key: Key | None = None
) -> None:
    """Write the masks (bool, in place) of `threshold`."""
    compare = torch.ge if threshold.ties == threshold.equal else torch.gt
    ties = 0 if threshold.ties == threshold.equal else threshold.ties
    for mask, score in zip(masks, scores, strict=True):
        flat_mask = mask.view(-1)
        flat_score = score.detach().reshape(-1)
        for start in range(0, flat_score.numel(), _CHUNK):
            piece = flat_score[start : start + _CHUNK]
            piece = piece if key is None else key(piece)
            into = flat_mask[start : start + _CHUNK]
            compare(piece, threshold.value, out=into)
            if ties:
                first = (piece == threshold.value).nonzero().squeeze(1)[:ties]
                into[first] = True
                ties -= len(first)


def pieces(scores: Sequence[Tensor], key: Key | None) -> Iterator[Tensor]:
    """Yield the scores, or `key` of them, a chunk at a time."""
    for score in scores:
        for piece in score.detach().reshape(-1).split(_CHUNK):
            yield piece if key is None else key(piece)


def _sample(scores: Sequence[Tensor], total: int, key: Key | None) -> Tensor:
    """Return scores at an odd stride, because the layout of matrices often repeats at powers of two."""
    stride = max(16, total // _SAMPLE) | 1
    device = scores[0].device
    sample = torch.cat([score.detach().reshape(-1)[::stride].to(device) for score in scores])
    return sample if key is None else key(sample)


def _bracket(sample: Tensor, density: float, margin: float) -> tuple[float, float]:
    """Return two scores with the threshold very likely between them, from ranks in the sample."""
    size = len(sample)
    rank = density * size
    slack = margin * math.sqrt(size * density * (1 - density)) + margin
    low, high = math.ceil(rank + slack), math.floor(rank - slack)

    def ranked(position: int) -> float:  # position 1 is the highest score
        return float(torch.kthvalue(sample, size - position + 1).values)

    return (
        ranked(low) if low <= size else -math.inf,
        ranked(high) if high >= 1 else math.inf,
    )


def _scan(scores: Sequence[Tensor], low: float, high: float, key: Key | None) -> tuple[int, Tensor]:
    """Return the number of scores >= high, and the scores strictly between low and high."""
    device = scores[0].device
    at_least_high = 0
    inside = [torch.empty(0, dtype=scores[0].dtype, device=device)]
    for piece in pieces(scores, key):
        upper = piece >= high
        at_least_high += int(torch.count_nonzero(upper))
        if low < high:
            inside.append(_between(piece, upper, low, high).to(device))
    return at_least_high, torch.cat(inside)


def _between(piece: Tensor, upper: Tensor, low: float, high: float) -> Tensor:
    """Return the few scores strictly between low and high, where `upper` is `piece >= high`.

    Groups of eight flags are compared as one word: if the words for low and high differ, a score of the group
    is between them.
    """
    grouped = piece.numel() // 8 * 8
    words = (piece[:grouped] > low).view(torch.int64) != upper[:grouped].view(torch.int64)
    near = torch.cat([piece[:grouped].view(-1, 8)[words.nonzero().squeeze(1)].view(-1), piece[grouped:]])
    return near[(near > low) & (near < high)]


def _count(scores: Sequence[Tensor], value: float, key: Key | None) -> tuple[int, int]:
    """Return the number of scores above `value`, and the number equal to it."""
    above = equal = 0
    for piece in pieces(scores, key):
        above += int(torch.count_nonzero(piece > value))
        equal += int(torch.count_nonzero(piece == value))
    return above, equal


def _kth(candidates: Tensor, rank: int) -> Threshold:
    """Return the threshold at the `rank`-th highest of `candidates`."""
    value = float(torch.kthvalue(candidates, len(candidates) - rank + 1).values)
    if math.isnan(value) or bool(candidates.isnan().any()):
        raise not_a_number(_count_nan([candidates]))
    higher = int(torch.count_nonzero(candidates > value))
    return Threshold(value, rank - higher, int(torch.count_nonzero(candidates == value)))


class NotANumberError(FinepruneError):
    """Scores that are NaN, which nothing can rank."""


def not_a_number(count: int) -> NotANumberError:
    """Return the error to raise for `count` scores that are NaN."""
    return NotANumberError(
        f"{count} importance scores are NaN: the training diverged; lower the learning rates "
        "(lr, score_lr) or clip the gradient, and start from the last good checkpoint"
    )


def _count_nan(scores: Sequence[Tensor]) -> int:
    return sum(int(torch.count_nonzero(entry.isnan())) for entry in scores)
