"""Compare the settings and masks of the processes of one training, before a difference costs anything."""

import contextlib
import json
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from fineprune._messages import one_line
from fineprune.errors import FinepruneError

_CHUNK = 1 << 17  # words of a mask per piece
_TRANSPORTS = ("gloo/transport", "NCCL")  # in the errors of the backends that are plain RuntimeErrors
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd: spreads the positions of words over all numbers


def several() -> bool:
    """Return whether this is one of several processes that train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Return whether this process is the first of those that train together, or the only one."""
    return not several() or distributed.get_rank() == 0


def agree(facts: Mapping[str, Any], when: str) -> None:
    """Raise `FinepruneError`, on all processes, for the first of the `facts` that they do not share.

    All processes must call it, with the same names. With one process it does nothing.
    """
    if not several():
        return
    checksums = [zlib.crc32(json.dumps(value, default=str).encode()) for value in facts.values()]
    differing = unlike(checksums)
    if differing:
        name = list(facts)[differing[0]]
        value = textwrap.shorten(json.dumps(facts[name], default=str), 60)
        raise FinepruneError(
            f"{when}: the processes disagree about {name} (process {distributed.get_rank()} has {value}); "
            "start all with the same settings, data and versions"
        )


@contextlib.contextmanager
def together(when: str) -> Iterator[None]:
    """Make an exception of one process raise on all of them, so that none waits for another."""
    try:
        yield
    except Exception:
        if several():
            unlike([1])
        raise
    if several() and unlike([0]):
        raise FinepruneError(f"{when}: another process of this training failed; its message says why")


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Raise one line where the block fails because another process is gone, or does not answer."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or any(name in str(error) for name in _TRANSPORTS)
        if not several() or not lost:
            raise
        raise FinepruneError(
            "another process of this training ended, or did not answer in time; its own output says why. "
            "Start all of them again, from the newest checkpoint: fineprune run --resume, or "
            f"resume_from_checkpoint=True ({one_line(error, 120)})"
        ) from error


def unlike(numbers: Sequence[int]) -> list[int]:
    """Return the indices at which the processes have different numbers; all processes must call it."""
    mine = torch.tensor(numbers, dtype=torch.int64)
    both = torch.stack([mine, ~mine]).to(_device())  # the greatest ~x belongs to the least x
    distributed.all_reduce(both, op=distributed.ReduceOp.MAX)
    return (both[0] != ~both[1]).nonzero().squeeze(1).tolist()


def mean(value: float) -> float:
    """Return the mean of a number over the processes; all of them must call it."""
    if not several():
        return value
    total = torch.tensor(value, dtype=torch.float32, device=_device())
    distributed.all_reduce(total)
    return float(total) / distributed.get_world_size()


def fingerprint(mask: Tensor) -> int:
    """Return a 64-bit number that depends on every flag and its position, the same on any device."""
    flags = mask.contiguous().view(-1).view(torch.uint8)
    words = torch.nn.functional.pad(flags, (0, -flags.numel() % 8)).view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=mask.device)
    for start in range(0, words.numel(), _CHUNK):
        piece = words[start : start + _CHUNK]
        position = torch.arange(start + 1, start + 1 + piece.numel(), device=mask.device) * _GOLDEN
        total += (piece * ((position ^ (position >> 29)) | 1)).sum()
    return int(total)


def _device() -> torch.device:
    """Return the device of the tensors that the backend of the processes takes."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if device is None or distributed.get_backend() == "gloo" else device
