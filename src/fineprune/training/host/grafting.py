"""Grafting (sparse progressive distillation, Huang et al. 2022, arXiv:2110.08190).

In each training pass every block of the student computes itself with probability p, else the teacher's frozen
block of the same place does; p rises linearly from `Distillation.graft` to 1. A block that was not drawn gets
no gradient in this pass. Draws are a function of seed, step and micro-batch, so a resumed run repeats them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fineprune.errors import FinepruneError
from fineprune.pruning.targets import repeated_blocks
from fineprune.training.host.part import Part

_MICRO_BATCHES = 4096  # more than there are in a step, so that no two draws have the same seed


class Grafting(Part):
    """Some blocks of the student are the teacher's in each training pass."""

    def __init__(self, host: Any, student: nn.Module, teacher: nn.Module, start: float, until: float) -> None:
        """Pair the blocks, and check that they fit, before anything is spent."""
        if host.args.world_size > 1:
            raise FinepruneError(
                "distillation: graft needs a single process, since others would wait for the gradients of "
                "blocks that were not drawn; leave graft out"
            )
        self._host, self._start, self._until = host, start, until
        self._pairs = paired_blocks(student, teacher)
        self._steps, self._micro = 0, 0

    def before_training(self, steps: int, steps_done: int) -> None:
        self._steps, self._micro = steps, 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        step = self._host.state.global_step
        share = own_share(step, self._start, self._until * self._steps)
        seed = (self._host.args.seed + step) * _MICRO_BATCHES + self._micro
        draws = torch.rand(len(self._pairs), generator=torch.Generator().manual_seed(seed)).tolist()
        self._micro += 1
        taught = [pair for pair, draw in zip(self._pairs, draws, strict=True) if draw >= share]
        before = [vars(own).get("forward") for own, _ in taught]
        for own, other in taught:
            own.forward = other.forward
        try:
            yield
        finally:
            for (own, _), forward in zip(taught, before, strict=True):
                vars(own).pop("forward", None)
                if forward is not None:
                    own.forward = forward

    def after_step(self) -> None:
        self._micro = 0


def own_share(step: int, start: float, until: float) -> float:
    """Return the probability p after `step` steps: from `start` to 1 at `until`, and 1 from then on."""
    return 1.0 if step >= until else start + (1 - start) * step / until


def paired_blocks(student: nn.Module, teacher: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return each repeated block of the student with the teacher's of the same name.

    Raises:
        FinepruneError: One of them has other blocks, or other shapes in them, or is an encoder-decoder.
    """
    if getattr(getattr(student, "config", None), "is_encoder_decoder", False):
        raise FinepruneError(
            "distillation: graft is not made for encoder-decoders, whose blocks pass each other more than "
            "hidden states; leave it out"
        )
    names = [repeated_blocks(model) for model in (student, teacher)]
    outermost = [name for name in names[0] if not any(name.startswith(f"{other}.") for other in names[0])]
    if not outermost or names[0] != names[1]:
        raise FinepruneError(
            f"distillation: graft needs a teacher with the blocks of the student, {len(names[0])}; it has "
            f"{len(names[1])}, or others; leave graft out, or name another teacher"
        )
    pairs = [(student.get_submodule(name), teacher.get_submodule(name)) for name in outermost]
    for name, (own, other) in zip(outermost, pairs, strict=True):
        if type(own) is not type(other) or _shapes(own) != _shapes(other):
            raise FinepruneError(
                f"distillation: graft needs blocks that are alike, and the teacher's {name} is another class "
                "or has other sizes; leave graft out, or name another teacher"
            )
        if "eager" in _attention(other) - _attention(own):  # which adds a bool mask as 0 and 1
            raise FinepruneError(
                f"distillation: graft: the teacher's {name} has eager attention and the student's not, so "
                "they take other masks; load both with the same attn_implementation"
            )
    return pairs


def _attention(block: nn.Module) -> set[str | None]:
    configs = [getattr(module, "config", None) for module in block.modules()]
    return {getattr(config, "_attn_implementation", None) for config in configs if config is not None}


def _shapes(block: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, entry.shape) for name, entry in block.named_parameters()]
