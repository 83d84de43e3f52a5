"""Settings from a file: every key known, or an error that says which one was meant."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from fineprune.errors import FinepruneError


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that look most like `name`, in whatever case, best first."""
    folded = {one.casefold(): one for one in known}
    return [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, n=count, cutoff=0.4)]


def check_keys(values: Any, known: Iterable[str], where: str) -> None:
    """Raise unless `values` is a mapping whose keys are all in `known`."""
    known = list(known)
    if not isinstance(values, Mapping):
        raise FinepruneError(f"{where}: expected a mapping of settings, got {values!r}")
    for key in values:
        if key not in known:
            close = near(str(key), known)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
            raise FinepruneError(f"{where}: unknown setting {key!r}; {hint}")
