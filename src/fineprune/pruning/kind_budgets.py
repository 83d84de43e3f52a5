"""The scope "type" (Jiang et al. 2023, "Pruning Pre-trained Language Models Without Fine-Tuning").

Each kind of matrix (query, key, …) keeps the density v in all, and matrix l of it the share

    v_l = v · N · a_l / sum of a over the kind,  a_l = mean sigmoid(S_l),

where N is the number of its matrices. A share above 1 becomes 1, and the others get the rest. The formula
is for matrices of one size; here each counts by its number of weights.
"""

from collections.abc import Sequence

import torch

from fineprune.pruning.anatomy import place_of
from fineprune.pruning.distributed import ranks
from fineprune.pruning.target import Target


@torch.no_grad()
def densities(targets: Sequence[Target], density: float) -> list[float]:
    """Return the density of each matrix, from its scores, where each kind has `density` in all."""
    means, carried = _means(targets), 0.0
    found = [density] * len(targets)
    kinds = [place_of(target.name).kind for target in targets]
    for kind in dict.fromkeys(kinds):
        members = [index for index, other in enumerate(kinds) if other == kind]
        sizes = [targets[index].scores.numel() for index in members]
        shared = shares([means[index] for index in members], sizes, density)
        for index, share, size in zip(members, shared, sizes, strict=True):
            wanted = share * size + carried  # whole weights, whose rounding the next matrix makes up for
            kept = min(size, max(1, round(wanted)))
            carried = wanted - kept
            found[index] = kept / size
    return found


def shares(weights: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """Return shares in proportion to `weights`, at most 1, that keep `density` of all together."""
    found, rest = [1.0] * len(sizes), list(range(len(sizes)))
    budget = density * sum(sizes)
    while rest:
        total = sum(weights[i] * sizes[i] for i in rest)
        scale = budget / total if total > 0 else 0.0
        full = [i for i in rest if weights[i] * scale >= 1]
        if not full:
            for i in rest:
                found[i] = weights[i] * scale if total > 0 else budget / sum(sizes[j] for j in rest)
            break
        budget -= sum(sizes[i] for i in full)
        rest = [i for i in rest if i not in full]
    return found


def _means(targets: Sequence[Target]) -> list[float]:
    """Return the mean of sigmoid(S) of each matrix, over all processes."""
    device = targets[0].scores.device
    sums = torch.stack([ranks.local(target.scores).sigmoid().sum().to(device) for target in targets])
    shards = ranks.Shards.of([target.scores for target in targets])
    if shards is not None:
        sums = shards.sum(sums)
    return [float(total) / target.scores.numel() for total, target in zip(sums, targets, strict=True)]
