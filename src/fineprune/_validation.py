"""Checks of settings that users write in files."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fineprune._messages import suggestion
from fineprune.errors import FinepruneError


def check_keys(values: Any, known: Iterable[str], where: str) -> None:
    """Raise `FinepruneError` unless `values` is a mapping whose keys are all in `known`."""
    allowed = list(known)
    if not isinstance(values, Mapping):
        raise FinepruneError(f"{where}: expected a mapping of settings, got {shown(values)}")
    for key in values:
        if key not in allowed:
            hint = suggestion(key, allowed, 3).rstrip() or f"known: {', '.join(allowed)}"
            raise FinepruneError(f"{where}: unknown setting {shown(key)}; {hint}")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number that a float can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """Return how a message shows a value, in 200 characters at most.

    Python refuses to print whole numbers of thousands of digits.
    """
    if isinstance(value, int) and value.bit_length() > 1100:
        return f"(a whole number of {value.bit_length()} bits)"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def check_number(name: str, value: Any) -> None:
    """Raise `FinepruneError` unless a setting is a finite number."""
    if not is_number(value):
        raise FinepruneError(f"{name}={shown(value)}: must be a finite number")
