"""Select over pruned matrices whose rows may be spread over processes (Eq. 1), behind one interface.

`of(tensors)` returns `Alone` if this process has every matrix complete, and `Shards` if each process has some
rows, as FSDP2's `fully_shard` distributes them. Scores are not sent. The processes exchange how many scores
have which leading bits, and three rounds of that (a radix search) give the k-th highest score exactly. Masks
are sent, one byte per weight: the forward pass has the complete matrix, so every process has the complete
mask. The result is the selection of a single process, including ties.
"""

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.pruning import selection
from fineprune.pruning.selection import Cost, Key, Threshold, is_mixed, keep_count

_DIGIT = 11  # bits of a score that one round determines


def of(tensors: Iterable[Tensor]) -> "Alone | Shards":
    """Return the distribution of the rows of several matrices.

    Raises:
        FinepruneError: They are spread over processes in different ways.
    """
    return Shards.of(tensors) or Alone()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor. There can only be one if its module was imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the rows that this process has; an ordinary tensor is returned itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def rows_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return the rows of `whole` that this process has of `like`."""
    return Shards(like).rows(whole) if is_sharded(like) else whole


def whole_like(flags: Tensor, like: Tensor) -> Tensor:
    """Return all flags from those of each process for its rows of `like`; all processes must call it."""
    return Shards(like).whole(flags, like) if is_sharded(like) else flags


def count_nonzero(tensor: Tensor) -> int:
    """Return the number of non-zero elements; of a sharded tensor, over all processes."""
    count = torch.count_nonzero(local(tensor))
    return int(Shards(tensor).sum(count) if is_sharded(tensor) else count)


def reshard(model: nn.Module) -> None:
    """Free the complete parameters that FSDP2 keeps after a forward pass, since we work on shards."""
    module = sys.modules.get("torch.distributed.fsdp")
    if module is not None:
        for entry in model.modules():
            if isinstance(entry, module.FSDPModule):
                entry.reshard()


def mean_of_means(values: Sequence[Tensor], of: Sequence[Tensor]) -> Tensor:
    """Return the mean over matrices of the mean of each matrix.

    Sharded matrices are summed over all processes. The gradient is that of the complete mean, for the rows of
    this process: FSDP2 adds it to its own unchanged.

    Args:
        values: the values for the rows that this process has of each matrix.
        of: the matrices.
    """
    device = values[0].device
    unsharded = [mean(v).to(device) for v, tensor in zip(values, of, strict=True) if not is_sharded(tensor)]
    shards = [tensor for tensor in of if is_sharded(tensor)]
    if not shards:
        return torch.stack(unsharded).mean()
    sums = [v.sum() / t.numel() for v, t in zip(values, of, strict=True) if is_sharded(t)]
    total: Tensor = _SumOfProcesses.apply(torch.stack(sums), Shards.of(shards))  # type: ignore[no-untyped-call]
    return torch.cat([total, *(entry.unsqueeze(0) for entry in unsharded)]).mean()


def mean(values: Tensor) -> Tensor:
    """Return `Tensor.mean` to the bit, without the matrix of equal numbers that its backward writes."""
    return values.sum() / values.numel()


class _SumOfProcesses(torch.autograd.Function):
    """The sum over processes; each of them gets its gradient unchanged."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shards: "Shards") -> Tensor:
        return shards.sum(value.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Alone:
    """The selection in a process that has every matrix complete."""

    def top_v(
        self,
        scores: Sequence[Tensor],
        density: float,
        masks: Sequence[Tensor],
        key: Key | None = None,
        floor: float = 0.0,
        each: bool = False,
        costs: Sequence[Cost] | None = None,
    ) -> list[Threshold]:
        """Write the Top_v of all scores ranked together, or of `each` matrix by itself, into `masks`.

        Args:
            scores: The scores, one tensor per matrix.
            density: The share of entries that stays, or of costs if these differ.
            masks: Bool, shaped as the scores.
            key: A function of the scores whose values are ranked in their place, piece by piece.
            floor: The share of itself that each matrix keeps at least if all are ranked together.
            each: Rank matrix by matrix.
            costs: The cost of the entries of each matrix.

        Returns:
            The threshold of each ranking.
        """
        if each:
            pairs = zip(scores, masks, strict=True)
            return [selection.top_v([score], density, [mask], key) for score, mask in pairs]
        if costs is not None and is_mixed(costs):
            return [selection.top_v_by_cost(scores, costs, density, masks, key)]
        return [selection.top_v(scores, density, masks, key, floor)]

    @torch.no_grad()
    def above(self, scores: Sequence[Tensor], cut: float, masks: Sequence[Tensor], floor: float) -> None:
        """Write the masks of scores above `cut`; each matrix keeps at least the share `floor` of itself."""
        for score, mask in zip(scores, masks, strict=True):
            torch.gt(score, cut, out=mask)
            if int(torch.count_nonzero(mask)) < keep_count(floor, mask.numel()):
                selection.top_v([score], floor, [mask])


class Shards:
    """The selection over processes that each have consecutive rows of the matrices, those of rank 0 first."""

    def __init__(self, tensor: Any) -> None:
        from torch.distributed.tensor import Shard

        self.mesh, self.placements = tensor.device_mesh, tensor.placements
        cut = [dim for dim, placement in enumerate(self.placements) if not placement.is_replicate()]
        if len(cut) != 1 or type(self.placements[cut[0]]) is not Shard or self.placements[cut[0]].dim != 0:
            raise FinepruneError(
                f"a pruned matrix is laid out as {self.placements}: only rows may be spread over processes, "
                "as fully_shard does by itself; leave tensor parallelism and shard_placement_fn out"
            )
        self.group = self.mesh.get_group(cut[0])
        self.rank = self.mesh.get_local_rank(cut[0])
        self.size: int = self.mesh.size(cut[0])

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Self | None:
        """Return the distribution of the sharded tensors among `tensors`; None if none is sharded.

        Raises:
            FinepruneError: They are spread over processes in different ways.
        """
        sharded: list[Any] = [tensor for tensor in tensors if is_sharded(tensor)]
        if not sharded:
            return None
        first = sharded[0]
        if any((t.device_mesh, t.placements) != (first.device_mesh, first.placements) for t in sharded):
            raise FinepruneError(
                "the pruned matrices are spread over processes in different ways; give all calls of "
                "fully_shard the same mesh"
            )
        return cls(first)

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the rows of this process, detached, also of a matrix that every process has complete."""
        if is_sharded(tensor):
            return local(tensor.detach())
        per_process = -(-tensor.shape[0] // self.size)
        start = min(self.rank * per_process, tensor.shape[0])
        return tensor.detach()[start : start + per_process]

    def whole(self, flags: Tensor, like: Tensor) -> Tensor:
        """Return all flags of the matrix `like` from those of each process for its rows."""
        from torch.distributed.tensor import DTensor

        stride = torch.empty(like.shape, device="meta").stride()
        spread = DTensor.from_local(
            flags.contiguous().view(torch.uint8),
            self.mesh,
            self.placements,
            run_check=False,
            shape=like.shape,
            stride=stride,
        )
        return spread.full_tensor().view(torch.bool)

    def sum(self, counts: Tensor) -> Tensor:
        """Return the sum over processes, which replaces `counts`."""
        torch.distributed.all_reduce(counts, group=self.group)
        return counts

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of each value over processes, which replaces `values`."""
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self.group)
        return values

    @torch.no_grad()
    def top_v(
        self,
        scores: Sequence[Tensor],
        density: float,
        masks: Sequence[Tensor],
        key: Key | None = None,
        floor: float = 0.0,
        each: bool = False,
        costs: Sequence[Cost] | None = None,
    ) -> list[Threshold]:
        """Write complete masks, as `Alone.top_v`; return the threshold of each ranking."""
        if not each and costs is not None and is_mixed(costs):
            raise FinepruneError(
                "units of different cost cannot be ranked together while they are spread over processes; "
                "rank them "
                'matrix by matrix (scope="local"), or train without fully_shard'
            )
        pieces = [self.rows(score) for score in scores]
        flags = [torch.empty(piece.shape, dtype=torch.bool, device=piece.device) for piece in pieces]
        sizes = [score.numel() for score in scores]
        if each:
            singles = [[index] for index in range(len(scores))]
            thresholds = self._select(
                pieces, flags, singles, [keep_count(density, size) for size in sizes], key
            )
        else:
            select = partial(self._select, pieces, flags, key=key)
            thresholds = [selection.select_together(flags, sizes, density, floor, select, self._kept)]
        for mask, flag, score in zip(masks, flags, scores, strict=True):
            mask.copy_(self.whole(flag, score))
        return thresholds

    @torch.no_grad()
    def above(self, scores: Sequence[Tensor], cut: float, masks: Sequence[Tensor], floor: float) -> None:
        """Write complete masks, as `Alone.above`."""
        pieces = [self.rows(score) for score in scores]
        flags = [piece > cut for piece in pieces]
        least = [keep_count(floor, score.numel()) for score in scores]
        low = [i for i, count in enumerate(self._kept(flags)) if count < least[i]]
        self._select(pieces, flags, [[i] for i in low], [least[i] for i in low])
        for mask, flag, score in zip(masks, flags, scores, strict=True):
            mask.copy_(self.whole(flag, score))

    def _select(
        self,
        pieces: Sequence[Tensor],
        flags: Sequence[Tensor],
        rankings: Sequence[Sequence[int]],
        keeps: Sequence[int],
        key: Key | None = None,
    ) -> list[Threshold]:
        """Rank the matrices of each ranking together, and write flags that keep its number of `keeps`."""
        if not rankings:
            return []
        thresholds = self._thresholds([[pieces[i] for i in ranking] for ranking in rankings], keeps, key)
        shares = self._tie_shares(pieces, rankings, thresholds, key)
        for ranking, threshold in zip(rankings, thresholds, strict=True):
            for index in ranking:
                ties, equal = shares[index]
                cut = Threshold(threshold.value, ties, equal)
                selection.fill_masks([flags[index]], [pieces[index]], cut, key)
        return thresholds

    def _thresholds(
        self, rankings: Sequence[Sequence[Tensor]], keeps: Sequence[int], key: Key | None
    ) -> list[Threshold]:
        """Return the threshold of each ranking by a radix search, from the highest digit down.

        Each round counts how often each value of the digit occurs among the scores whose higher digits are
        those of the threshold; the counts give the next digit of the threshold.
        """
        wide = any(piece.dtype == torch.float64 for ranking in rankings for piece in ranking)
        bits, device = (64 if wide else 32), rankings[0][0].device
        nan = torch.zeros(1, dtype=torch.int64, device=device)
        candidates: list[Iterable[Tensor]] = [_ordered(ranking, key, wide, nan) for ranking in rankings]
        bases = [-(1 << (_DIGIT - 1))] * len(rankings)  # the lowest value of the digit
        needed = torch.tensor(keeps)
        while True:
            width = min(_DIGIT, bits)
            bits -= width
            counts = torch.zeros(len(rankings), 1 << width, dtype=torch.int64, device=device)
            for row, numbers, base in zip(counts, candidates, bases, strict=True):
                for entry in numbers:
                    row += torch.bincount((entry >> bits) - base, minlength=1 << width).to(device)
            totals = self.sum(torch.cat([counts.view(-1), nan])).cpu()
            if int(totals[-1]):
                raise selection.not_a_number(int(totals[-1]))
            occur = totals[:-1].view(len(rankings), -1)
            reached = occur.flip(1).cumsum(1).flip(1)  # scores with this digit or a higher one
            digits = (reached >= needed[:, None]).sum(1, keepdim=True) - 1
            equal = occur.gather(1, digits).squeeze(1)
            needed = needed - reached.gather(1, digits).squeeze(1) + equal
            numbers_so_far = [
                base + digit for base, digit in zip(bases, digits.view(-1).tolist(), strict=True)
            ]
            if not bits:
                values = _values(numbers_so_far, wide)
                cuts = zip(values, needed.tolist(), equal.tolist(), strict=True)
                return [Threshold(*entry) for entry in cuts]
            if not isinstance(candidates[0], list):  # after the first round, read all scores once more
                candidates = [_ordered(ranking, key, wide, nan) for ranking in rankings]
            candidates = [
                [entry[(entry >> bits) == number] for entry in numbers]
                for numbers, number in zip(candidates, numbers_so_far, strict=True)
            ]
            bases = [number << min(_DIGIT, bits) for number in numbers_so_far]

    def _tie_shares(
        self,
        pieces: Sequence[Tensor],
        rankings: Sequence[Sequence[int]],
        thresholds: Sequence[Threshold],
        key: Key | None,
    ) -> dict[int, tuple[int, int]]:
        """Return, by matrix, the number of this process's ties that stay, and the number that it has.

        Ties stay in the order of the matrices, then of the ranks, since a lower rank has the lower rows.
        """
        members = [(index, t) for ranking, t in zip(rankings, thresholds, strict=True) for index in ranking]
        if all(threshold.ties == threshold.equal for threshold in thresholds):
            return {index: (0, 0) for index, _ in members}  # all ties stay, so the mask is score >= value
        counts = torch.tensor([_equal(pieces[index], t.value, key) for index, t in members])
        table = torch.zeros(self.size, len(members), dtype=torch.int64)
        table[self.rank] = counts
        all_counts = self.sum(table.to(pieces[0].device)).tolist()
        columns = iter(zip(*all_counts, strict=True))
        shares = {}
        for ranking, threshold in zip(rankings, thresholds, strict=True):
            remaining = threshold.ties
            for index in ranking:
                column = next(columns)
                before = min(remaining, sum(column[: self.rank]))
                shares[index] = (min(remaining - before, column[self.rank]), column[self.rank])
                remaining -= min(remaining, sum(column))
        return shares

    def _kept(self, flags: Sequence[Tensor]) -> list[int]:
        counts = torch.stack([torch.count_nonzero(flag).to(flags[0].device) for flag in flags])
        return self.sum(counts).tolist()


def _ordered(scores: Sequence[Tensor], key: Key | None, wide: bool, nan: Tensor) -> Iterable[Tensor]:
    """Yield the scores, a piece at a time, as integers of the same order; count NaN into `nan`."""
    kind, number = (torch.float64, torch.int64) if wide else (torch.float32, torch.int32)
    for piece in selection.pieces(scores, key):
        value = piece.to(kind) + 0.0  # no negative zero
        nan += torch.count_nonzero(value.isnan()).to(nan.device)
        yield _flip(value.view(number))


def _flip(number: Tensor) -> Tensor:
    """Map the bits of floats to integers of the same order, and back: those of negative floats descend."""
    info = torch.iinfo(number.dtype)
    return number ^ ((number >> (info.bits - 1)) & info.max)


def _values(numbers: Sequence[int], wide: bool) -> list[float]:
    kind, number = (torch.float64, torch.int64) if wide else (torch.float32, torch.int32)
    return _flip(torch.tensor(numbers, dtype=number)).view(kind).tolist()


def _equal(piece: Tensor, value: float, key: Key | None) -> int:
    return sum(int(torch.count_nonzero(entry == value)) for entry in selection.pieces([piece], key))
