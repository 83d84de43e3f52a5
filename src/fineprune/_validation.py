"""Checks of settings that users write in files."""

from collections.abc import Iterable, Mapping
from typing import Any

from fineprune._messages import suggestion
from fineprune.errors import FinepruneError


def check_keys(values: Any, known: Iterable[str], where: str) -> None:
    """Raise `FinepruneError` unless `values` is a mapping whose keys are all in `known`."""
    allowed = list(known)
    if not isinstance(values, Mapping):
        raise FinepruneError(f"{where}: expected a mapping of settings, got {values!r}")
    for key in values:
        if key not in allowed:
            hint = suggestion(key, allowed, 3).rstrip() or f"known: {', '.join(allowed)}"
            raise FinepruneError(f"{where}: unknown setting {key!r}; {hint}")
