"""Compute attention in the way that is faster for what is done."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

_FUSED_FROM = 192
"""Tokens from which a training step, too, is faster with fused attention."""


def is_long(inputs: Mapping[str, Any]) -> bool:
    """Return whether a training step on a batch without dropout is faster with fused attention."""
    ids = inputs.get("input_ids")
    return ids is not None and ids.shape[-1] >= _FUSED_FROM


@contextlib.contextmanager
def fused_attention(model: Any) -> Iterator[None]:
    """Let a model with eager attention use torch's fused one in the block, where transformers has both.

    The values are the same but for rounding. On a CPU the fused one is slow backward in bfloat16, and the
    faster one forward, the more so the longer the texts (`benchmarks/attention.py`).
    """
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if before != "eager" or not (model._supports_sdpa and model._can_set_attn_implementation()):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
