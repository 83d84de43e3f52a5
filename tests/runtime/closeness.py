"""How near the engine's answer of one linear layer has to be to exact arithmetic."""

import platform
from typing import Any

import numpy as np

from fineprune_runtime import Linear


def most_level(level: str) -> int:
    """The largest level of an int8 weight: without VNNI, x86 adds two products of bytes in 16 bits."""
    has_dot4 = level in ("avx512_vnni", "avx512_bf16", "amx")
    return 64 if platform.machine() in ("x86_64", "AMD64") and not has_dot4 else 127


def assert_close(y: Any, linear: Linear, x: Any, dtype: str, level: str) -> None:
    """Whether `y` is `linear` of `x` to within rounding, element by element.

    float32: sums of n terms are off by about sqrt(n) 2^-24 of the sum of their magnitudes, below 1e-5 of
    it for any n here. bfloat16: both factors of a term are rounded by up to 2^-8 of themselves. int8: a
    weight is off by up to half a step of its row, an activation by half a step of its token; its largest one
    by a whole step, where the zero point was rounded up. Roundings are independent, so beside that worst
    sum there is a second bound, 6 standard deviations of the sum (bfloat16: 2^-8.3 a term; int8: a step /
    sqrt(12)). It grows with the root of the number of terms, so that even one lost term of hundreds is seen.
    """
    w, x = linear.weight.to_dense().astype(np.float64), x.astype(np.float64)
    bias = np.zeros(len(w)) if linear.bias is None else linear.bias.astype(np.float64)
    size = np.abs(x) @ np.abs(w).T
    bound = 1e-5 * (size + np.abs(bias)) + 1e-30
    if dtype == "bfloat16":
        bound += np.minimum(1.01 * 2.0**-7 * size, 6 * 2.0**-8.3 * np.sqrt(x**2 @ (w**2).T))
    if dtype == "int8":
        most, largest = most_level(level), np.abs(w).max(axis=1, initial=0)
        given = 0 if linear.weight.scales is None else linear.weight.scales.astype(np.float64)
        row = np.where(largest <= given * (most + 0.5), 0, largest / most)
        token = (np.maximum(0, x.max(axis=1, initial=0)) - np.minimum(0, x.min(axis=1, initial=0))) / 255
        kept = (w != 0).astype(np.float64).T
        worst = np.outer(token, np.abs(w).sum(axis=1)) + (np.abs(x) + token[:, None]) @ kept * row / 2
        square = np.outer(token**2, (w**2).sum(axis=1)) + (x**2 + token[:, None] ** 2) @ kept * row**2
        cut = np.outer(token, np.abs(w).max(axis=1, initial=0))
        bound += np.minimum(1.01 * worst, 6 * np.sqrt(square / 12) + cut)
    error = np.abs(y - (x @ w.T + bias))
    assert (error <= bound).all(), f"{(error / bound).max():.3g} of the bound"
