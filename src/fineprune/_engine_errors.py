"""Errors of `fineprune_runtime`, raised as fineprune's own."""

from collections.abc import Iterator
from contextlib import contextmanager

from fineprune.errors import FinepruneError
from fineprune_runtime.errors import EngineError


@contextmanager
def engine_errors(before: str = "", after: str = "") -> Iterator[None]:
    """Raise a `FinepruneError` for each `EngineError`: its message between `before` and `after`."""
    try:
        yield
    except EngineError as error:
        raise FinepruneError(f"{before}{error}{after}") from error
