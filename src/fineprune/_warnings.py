"""Show our warnings as one line each, and collect those of a run."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from fineprune._messages import one_line
from fineprune.errors import FinepruneWarning


def show_as_lines() -> None:
    """Print each `FinepruneWarning` as one line on stderr from now on, and others as Python does it."""
    usual = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if issubclass(category, FinepruneWarning):
            print(f"fineprune: warning: {one_line(Warning(str(message)), 600)}", file=file or sys.stderr)
        else:
            usual(message, category, filename, lineno, file, line)

    warnings.showwarning = show


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Yield a list that gets our warnings of the block, each text once; they are shown as ever.

    These are what is warned as `FinepruneWarning`, and what the logger `fineprune` says at that level.
    """
    texts: list[str] = []

    def keep(text: str) -> None:
        if text not in texts:
            texts.append(text)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            keep(record.getMessage())

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("fineprune")
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, FinepruneWarning):
                keep(str(message))
            usual(message, category, *rest)

        warnings.showwarning = show
        logger.addHandler(handler)
        try:
            yield texts
        finally:
            logger.removeHandler(handler)
