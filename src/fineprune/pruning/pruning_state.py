"""The state of a pruning beside the folded weights, for checkpoints: plain values and tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fineprune._messages import differences
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import ranks
from fineprune.pruning.target import Target

_MODULES = "modules"


class SavedState(NamedTuple):
    """The plain values of a saved pruning, read back."""

    config: PruningConfig
    total: int
    steps_done: int
    threshold: float | None
    lambda_: float
    changed: float
    method: Any
    outer: tuple[float | None, float] | None
    """Threshold and lambda of an outer level."""

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> "SavedState":
        """Read what `Pruner.state_dict` returned.

        Raises:
            FinepruneError: A value is missing or of a wrong type.
        """
        try:
            return cls(
                PruningConfig.from_dict(state["config"]),
                int(state["total_steps"]),
                int(state["steps_done"]),
                state["threshold"],
                float(state["lambda"]),
                float(state["changed"]),
                state.get("method"),
                None if state.get("outer") is None else (state["outer"][0], float(state["outer"][1])),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise FinepruneError(f"not the state of a pruner: {error} is missing or wrong") from error

    def check(self, config: PruningConfig, total: int) -> None:
        """Raise `FinepruneError` unless the state is of a run with this config and length."""
        if self.config == config and self.total == total:
            return
        saved = self.config.to_dict() | {"total_steps": self.total}
        differing = differences(saved, config.to_dict() | {"total_steps": total})
        raise FinepruneError(
            f"the saved pruning run is another one ({'; '.join(differing)}); resume with its settings"
        )


@torch.no_grad()
def tensors(
    targets: Sequence[Target], modules: nn.Module | None, outer: Sequence[Target] = ()
) -> dict[str, Tensor]:
    """Return what the folded weights do not show, on the CPU: scores, masks, gates, statistics, hidden
    weights.

    Keys are "TARGET.PART"; `TARGET.hidden` are the stored weights that folding hides, one after the other,
    and `TARGET.followers.N` the lines of other matrices that it zeroes. Of an outer level they are
    "TARGET.outer.PART", without weights, which the inner level hides.
    """
    found: dict[str, Tensor] = {}
    for target in outer:
        found |= {f"{target.name}.outer.{part}": entry for part, entry in target.masked.state_dict().items()}
    for target in targets:
        parts = target.masked.state_dict()
        parts["hidden"] = target.weight[target.masked.hidden()]
        dead = ~target.masked.kept_units()
        for number, follower in enumerate(target.followers):
            lines = follower.weight.index_select(follower.lines.axis, follower.places(dead))
            parts[f"followers.{number}"] = lines
        found |= {f"{target.name}.{part}": tensor for part, tensor in parts.items()}
    if modules is not None:
        found |= {f"{_MODULES}.{key}": tensor for key, tensor in modules.state_dict().items()}
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in found.items()}


@torch.no_grad()
def load_tensors(
    targets: Sequence[Target],
    modules: nn.Module | None,
    saved: Mapping[str, Tensor],
    outer: Sequence[Target] = (),
) -> None:
    """Take back what `tensors` returned, into a model whose folded weights are loaded already.

    Raises:
        FinepruneError: A tensor is missing, not known, or of another shape or type.
    """
    rest = dict(saved)
    for target in outer:  # first, since the inner level hides what the outer one cuts
        for part, tensor in target.masked.state_dict(keep_vars=True).items():
            _copy(rest, f"{target.name}.outer.{part}", tensor)
    for target in targets:
        for part, tensor in target.masked.state_dict(keep_vars=True).items():
            _copy(rest, f"{target.name}.{part}", tensor)
        hidden = target.masked.hidden()
        stored = target.weight[hidden]
        _copy(rest, f"{target.name}.hidden", stored)
        target.weight[hidden] = stored
        dead = ~target.masked.kept_units()
        for number, follower in enumerate(target.followers):
            axis, places = follower.lines.axis, follower.places(dead)
            zeroed = follower.weight.index_select(axis, places)
            _copy(rest, f"{target.name}.followers.{number}", zeroed)
            follower.weight.index_copy_(axis, places, zeroed)
    if modules is not None:
        for key, tensor in modules.state_dict(keep_vars=True).items():
            _copy(rest, f"{_MODULES}.{key}", tensor)
    if rest:
        raise FinepruneError(f"the saved pruning has {next(iter(rest))}, which this run does not know")


def refuse_sharded(targets: Sequence[Target]) -> None:
    """Raise `FinepruneError` where matrices are spread over processes: their engine saves them."""
    if any(ranks.is_sharded(target.weight) for target in targets):
        raise FinepruneError(
            "the matrices are spread over processes; their state is saved by torch.distributed.checkpoint"
        )


def _copy(saved: dict[str, Tensor], key: str, into: Tensor) -> None:
    tensor = saved.pop(key, None)
    if tensor is None:
        raise FinepruneError(f"the saved pruning has no {key}, which this run needs")
    if tensor.shape != into.shape or tensor.dtype != into.dtype:
        raise FinepruneError(
            f"{key}: saved as {tuple(tensor.shape)} {tensor.dtype}, this run has {tuple(into.shape)} "
            f"{into.dtype}"
        )
    into.copy_(tensor)
