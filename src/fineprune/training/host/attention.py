"""Compute attention another way while nothing is trained."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def fused_attention(model: Any) -> Iterator[None]:
    """Let a model with eager attention use torch's fused one in the block, where transformers has both.

    The values are the same but for rounding. On a CPU the fused one is slow backward in bfloat16, and the
    faster one forward, the more so the longer the texts.
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
