"""One run on several processes: who writes, how a batch is shared, and what a checkpoint says of it."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size

from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from fineprune.training.host.trainer import PruningTrainer

_log = logging.getLogger("fineprune")


def processes() -> PartialState:
    """Which process it is, of how many that torchrun or accelerate started; alone, the first of one."""
    return PartialState(cpu=not torch.accelerator.is_available())


def share_of(rows: int, what: str) -> int:
    """The rows of each process, of a batch over all of them."""
    count: int = processes().num_processes
    if rows % count:
        raise FinepruneError(
            f"{what}={rows}: is the batch of all {count} processes together and must be a multiple of their "
            f"number; take {rows + count - rows % count}, or another number of processes"
        )
    return rows // count


def rows_per_step(trainer: "PruningTrainer") -> int:
    """The rows that an optimizer step takes, over micro-batches and processes."""
    args = trainer.args
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def one_device(trainer: "PruningTrainer") -> None:
    """Train on the first of several GPUs that one process sees: the Trainer would wrap the model in
    DataParallel, which multiplies the batch, and whose copies of a model are not where scores are learned.
    """
    args = trainer.args
    if args.n_gpu > 1:
        text = "%d GPUs are visible, one process trains on the first; for all of them: torchrun"
        _log.warning(text + " --nproc-per-node %d", args.n_gpu, args.n_gpu)
        args._n_gpu = 1
        trainer._train_batch_size = args.train_batch_size


def facts(trainer: "PruningTrainer") -> dict[str, Any]:
    """What the trainers of all processes must share."""
    data = {"training": trainer.train_dataset, "validation": trainer.eval_dataset}
    sizes = {f"the rows of the {name} data": _size(rows) for name, rows in data.items()}
    args = trainer.args
    named = ("max_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps", "seed")
    return sizes | {name: getattr(args, name) for name in named}


def refuse_engines(trainer: "PruningTrainer") -> None:
    """Raise for the engines that keep parameters where masks could not follow them."""
    args = trainer.args
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        if stage == 3 or args.bf16 or args.fp16:
            why = "ZeRO-3 takes the scores apart" if stage == 3 else "with bf16 and fp16 it casts the scores"
            raise FinepruneError(
                f"deepspeed: {why}; use ZeRO-1 or 2 in float32, or fsdp (FSDP2), which may be bf16"
            )
    if args.fsdp and not trainer.is_fsdp_enabled:
        raise FinepruneError(
            "fsdp: accelerate has it on accelerators only, and would run DDP here; leave fsdp out, or call "
            "fully_shard in a loop of your own"
        )
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise FinepruneError('fsdp: pruning needs FSDP2; set fsdp_config={"version": 2}')


def written_by(trainer: "PruningTrainer") -> dict[str, Any]:
    """What a checkpoint keeps of how it was made."""
    return {
        "processes": trainer.args.world_size,
        "rows": rows_per_step(trainer),
        "fsdp": bool(trainer.is_fsdp_enabled),
    }


def check_resumed(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs for a run that goes on with another number of processes; None where nothing does.

    Raises `FinepruneError` where it cannot go on.
    """
    if not then:
        return None
    if then["fsdp"] != now["fsdp"]:
        raise FinepruneError(
            f"{name}: written with{'' if then['fsdp'] else 'out'} FSDP, this run is with"
            f"{'' if now['fsdp'] else 'out'} it; resume as it began, or save_model there and start from that"
        )
    if then["rows"] != now["rows"]:
        raise FinepruneError(
            f"{name}: its steps took {then['rows']} rows, on {then['processes']} processes; these would take "
            f"{now['rows']}: choose per_device_train_batch_size and gradient_accumulation_steps such that, "
            f"times {now['processes']} processes, they make {then['rows']}"
        )
    if then["processes"] == now["processes"]:
        return None
    return (
        f"{name}: written by {then['processes']} processes, continued by {now['processes']}: the same rows "
        "in the same order, but dropout and l0's gates are drawn anew"
    )


def own_rows(trainer: "PruningTrainer", inputs: Mapping[str, Any]) -> int | None:
    """How many rows of the last batch of an evaluation are ours to count; None where all or none are.

    accelerate fills that batch up with rows from the start, and drops their answers again.
    """
    state = trainer.accelerator.gradient_state
    if trainer.args.world_size <= 1 or not state.end_of_dataloader or state.remainder <= 0:
        return None
    rows: int | None = find_batch_size(inputs)
    if rows is None:
        return None
    own = state.remainder - trainer.args.process_index * rows
    return int(own) if 0 < own < rows else None


def first_rows(inputs: Mapping[str, Any], own: int) -> dict[str, Any]:
    """The batch cut to so many rows."""
    rows = find_batch_size(inputs)
    cut = lambda v: isinstance(v, Tensor) and v.ndim and len(v) == rows  # noqa: E731
    return {name: value[:own] if cut(value) else value for name, value in inputs.items()}  # type: ignore[no-untyped-call]


def filled(outputs: Any, own: int, rows: int) -> Any:
    """Answers for `rows` rows, of `own`: the last is repeated, for what is gathered must be of one size."""
    if isinstance(outputs, Tensor):
        if not outputs.ndim or len(outputs) != own:
            return outputs  # not of the rows
        missing = rows - own
        return torch.cat([outputs, outputs[-1:].expand(missing, *outputs.shape[1:])])
    if isinstance(outputs, Mapping):
        parts = {name: filled(value, own, rows) for name, value in outputs.items()}
        return type(outputs)(parts)  # type: ignore[call-arg]
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(filled(value, own, rows) for value in outputs)
    return outputs


def _size(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _size(rows) for name, rows in data.items()}
    return len(data) if hasattr(data, "__len__") else None
