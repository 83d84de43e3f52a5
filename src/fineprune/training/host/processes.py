"""One run on several processes: their number, their shares of a batch, their record in a checkpoint."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from transformers import Trainer

from fineprune._messages import differences
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement
from fineprune.training.host.data_fingerprint import fingerprint

_log = logging.getLogger("fineprune")


def this_process() -> PartialState:
    """Return this process's place among those of torchrun or accelerate; alone, the first of one."""
    return PartialState(cpu=not torch.accelerator.is_available())


def share_of(rows: int, what: str) -> int:
    """Return the rows of each process in a batch of `rows` over all of them; `what` names the setting."""
    count: int = this_process().num_processes
    if rows % count:
        raise FinepruneError(
            f"{what}={rows}: is the batch of all {count} processes together and must be a multiple of their "
            f"number; take {rows + count - rows % count}, or another number of processes"
        )
    return rows // count


def rows_per_step(trainer: Trainer) -> int:
    """Return the rows that an optimizer step takes, over micro-batches and processes."""
    args = trainer.args
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def one_device(trainer: Trainer) -> None:
    """Train on the first of several GPUs that one process sees.

    transformers would wrap the model in DataParallel, which multiplies the batch, and whose copies of the
    model do not learn scores.
    """
    args = trainer.args
    if args.n_gpu > 1:
        text = "%d GPUs are visible, one process trains on the first; for all of them: torchrun"
        _log.warning(text + " --nproc-per-node %d", args.n_gpu, args.n_gpu)
        args._n_gpu = 1
        trainer._train_batch_size = args.train_batch_size


def facts(trainer: Trainer) -> dict[str, Any]:
    """Return the settings that the trainers of all processes must share, by name."""
    data = {"training": trainer.train_dataset, "validation": trainer.eval_dataset}
    sizes = {f"the rows of the {name} data": _size(rows) for name, rows in data.items()}
    if agreement.several():
        sizes |= {f"the content of the {name} data": fingerprint(rows) for name, rows in data.items()}
    args = trainer.args
    named = ("max_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps", "seed")
    return sizes | {name: getattr(args, name) for name in named}


def refuse_engines(trainer: Trainer) -> None:
    """Raise `FinepruneError` for engines that keep parameters where masks cannot follow them."""
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


_SETTINGS = (
    *("learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "seed"),
    *("bf16", "fp16", "label_smoothing_factor", "train_sampling_strategy"),
)


def written_by(trainer: Trainer) -> dict[str, Any]:
    """Return what a checkpoint records about the run and the processes that wrote it."""
    args = trainer.args
    return {
        "processes": args.world_size,
        "rows": rows_per_step(trainer),
        "fsdp": bool(trainer.is_fsdp_enabled),
        "settings": {name: _plain(getattr(args, name, None)) for name in _SETTINGS},
    }


def check_resumed(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return a line about what a run that is continued does otherwise; None for nothing.

    Raises:
        FinepruneError: It cannot be continued so.
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
    if then["processes"] != now["processes"]:
        return (
            f"{name}: written by {then['processes']} processes, continued by {now['processes']}: the same "
            "rows in the same order, but dropout and l0's gates are drawn anew"
        )
    changed = differences(then.get("settings") or now["settings"], now["settings"])
    if changed:
        return (
            f"{name}: its run has other settings than this one ({'; '.join(changed)}); learning rates and "
            "decay stay those of the checkpoint: resume with its settings, or start a new run"
        )
    return None


def check_data(name: str, then: Any, now: Any, what: str) -> None:
    """Raise `FinepruneError` if the data of a checkpoint's run are known to be others than those now."""
    if then is not None and now is not None and then != now:
        changed = differences(then, now) if isinstance(then, Mapping) and isinstance(now, Mapping) else None
        pair = "; ".join(changed) if changed else f"{then} there, {now} now"
        raise FinepruneError(
            f"{name}: the {what} data changed since it was written ({pair}): rows, labels or their order; "
            "resume with the same data, or start a new run"
        )


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it; those of transformers' enumerations have a value."""
    return getattr(value, "value", value)


def _size(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _size(rows) for name, rows in data.items()}
    return len(data) if hasattr(data, "__len__") else None
