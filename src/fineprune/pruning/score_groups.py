"""The parameters of a prepared model in an optimizer: weights as the caller wants them, scores apart."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.score_optimizer import MARK, OBSERVED, adopt
from fineprune.pruning.target import Target


def weight_groups(
    parameters: Iterable[nn.Parameter], targets: Sequence[Target], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return groups of all trained parameters but scores: matrices, then biases and norms without decay."""
    scores = {id(target.masked.scores) for target in targets}
    trained = [entry for entry in parameters if entry.requires_grad and id(entry) not in scores]
    decay = [entry for entry in trained if entry.ndim > 1]
    no_decay = [entry for entry in trained if entry.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decay, "lr": lr, "weight_decay": weight_decay},
        {"params": no_decay, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def score_group(
    targets: Sequence[Target], config: PruningConfig, score_lr: float | None
) -> list[dict[str, Any]]:
    """Return the group of the scores that get gradients; empty for none.

    An optimizer moves those that are learned, at their own rate. Those whose gradients a rule reads it only
    has, so that a scaler of the loss unscales them with all others.
    """
    scores = [target.masked.scores for target in targets if target.masked.scores is not None]
    if not scores:
        return []
    if not config.traits.learns_scores:
        return [{"params": scores, "lr": 0.0, "weight_decay": 0.0, MARK: OBSERVED}]
    group: dict[str, Any] = {"params": scores, "lr": score_lr, "weight_decay": 0.0}
    if config.score_optimizer != "adam":
        group[MARK] = config.score_optimizer
    return [group]


def take_scores_out(
    optimizer: torch.optim.Optimizer, targets: Sequence[Target], group: Sequence[dict[str, Any]]
) -> None:
    """Take the scores out of an optimizer's groups, and add the `group` that is theirs.

    An optimizer that has stepped is left as it is if it has them apart already, as a copy of one that took
    them.

    Raises:
        FinepruneError: The optimizer has stepped already, or a scheduler knows it without the `group`, or its
            class made its state without the scores.
    """
    scores = {id(score): score for target in targets if (score := target.masked.scores) is not None}
    if any(_has_stepped(entry) for entry in optimizer.state.values()):
        if _are_apart(optimizer, set(scores), group):
            return
        raise FinepruneError(
            "the optimizer has stepped already, and its state does not know the scores; attach it before its "
            "first step"
        )
    if group and any("initial_lr" in entry for entry in optimizer.param_groups):
        raise FinepruneError(
            "a learning rate scheduler was made before the scores had a group of their own in the optimizer; "
            "make it after pruner.attach(optimizer), and for a trainer leave it out"
        )
    by_rule = not group or MARK in group[0]
    if optimizer.state and not by_rule and any(score not in optimizer.state for score in group[0]["params"]):
        raise FinepruneError(
            f"{type(optimizer).__name__} makes its state when it is built, and was built without the scores: "
            "build it after prepare, by pruner.optimizer(kind, lr)"
        )
    for score in scores.values() if by_rule else ():
        optimizer.state.pop(score, None)  # Adagrad fills it before the first step
    for entry in optimizer.param_groups:
        entry["params"] = [parameter for parameter in entry["params"] if id(parameter) not in scores]
    optimizer.param_groups = [entry for entry in optimizer.param_groups if entry["params"]]
    for entry in group:
        optimizer.add_param_group(dict(entry))
        if MARK in entry:
            adopt(optimizer)


def _has_stepped(state: Any) -> bool:
    """Return whether the state of a parameter is of a step; Adagrad's is there before the first."""
    return not isinstance(state, dict) or bool(state.get("step", 1))


def _are_apart(optimizer: torch.optim.Optimizer, scores: set[int], group: Sequence[dict[str, Any]]) -> bool:
    """Return whether an optimizer has the scores in the `group` that is theirs, and nowhere else."""
    entries = [(entry, {id(score) for score in entry["params"]}) for entry in optimizer.param_groups]
    having = [(entry, ids) for entry, ids in entries if ids & scores]
    if not group or len(having) != 1:
        return not group and not having
    (entry, ids), (wanted,) = having[0], group
    rate = entry.get("initial_lr", entry["lr"])
    return ids == scores and entry.get(MARK) == wanted.get(MARK) and rate == wanted["lr"]


def refuse_decay(groups: Iterable[dict[str, Any]], targets: Sequence[Target], method: str) -> None:
    """Raise `FinepruneError` if the optimizer would decay the weights of the targets."""
    weights = {id(target.weight) for target in targets}
    for group in groups:
        if group.get("weight_decay") and any(id(entry) in weights for entry in group["params"]):
            raise FinepruneError(
                f"weight_decay={group['weight_decay']!r}: {method} already pulls the weights that it prunes "
                "to 0; give their group weight_decay=0"
            )


def rates(optimizer: torch.optim.Optimizer) -> Callable[[Target], float]:
    """Return a function of a target: the learning rate that its weight has in the optimizer now."""
    of = {id(entry): float(group["lr"]) for group in optimizer.param_groups for entry in group["params"]}
    return lambda target: of.get(id(target.weight), 0.0)
