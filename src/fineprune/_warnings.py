"""Show our warnings as one line each, and collect those of a run."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from fineprune._messages import one_line
from fineprune.errors import FinepruneWarning


def show_as_lines() -> None:
    """Print each `FinepruneWarning` as one line on stderr from now on, and others as Python does it."""

    def show(text: str, usual: Callable[[], None]) -> None:
        _print(text)

    warnings.showwarning = _showing(show)


def _print(text: str) -> None:
    print(f"fineprune: warning: {one_line(Warning(text), 600)}", file=sys.stderr)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Yield a list that gets our warnings of the block, each text once; they are shown as ever.

    These are what is warned as `FinepruneWarning`, and what the logger `fineprune` says at that level.
    """
    texts: list[str] = []

    def keep(text: str) -> None:
        if text not in texts:
            texts.append(text)

    def show(text: str, usual: Callable[[], None]) -> None:
        keep(text)
        usual()

    logger = logging.getLogger("fineprune")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            keep(record.getMessage())
            # Python prints what no handler takes; with this one it no longer does.
            if logger.handlers == [self] and not logging.getLogger().handlers:
                _print(record.getMessage())

    handler = Handler(logging.WARNING)
    with warnings.catch_warnings():
        warnings.showwarning = _showing(show)
        logger.addHandler(handler)
        try:
            yield texts
        finally:
            logger.removeHandler(handler)


def _showing(show: Callable[[str, Callable[[], None]], None]) -> Any:
    """Return a function for `warnings.showwarning`: `show` gets our texts, and the usual way to show them."""
    before = warnings.showwarning

    def showwarning(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, FinepruneWarning):
            show(str(message), lambda: before(message, category, *place))
        else:
            before(message, category, *place)

    return showwarning
