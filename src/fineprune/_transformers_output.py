"""Hold back what transformers prints while it loads, so that our own lines can be read."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' advice and loading bars; its settings come back with the block's end."""
    from transformers import logging as output

    level, bars = output.get_verbosity(), output.is_progress_bar_enabled()
    output.set_verbosity_error()
    output.disable_progress_bar()
    try:
        yield
    finally:
        output.set_verbosity(level)
        if bars:
            output.enable_progress_bar()


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Hold back transformers' report of unused and new weights; print it if the block fails."""
    logger = logging.getLogger("transformers.modeling_utils")
    reports: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        if "LOAD REPORT" not in record.getMessage():
            return True
        reports.append(record)
        return False

    logger.addFilter(hold)
    failed = True
    try:
        yield
        failed = False
    finally:
        logger.removeFilter(hold)
        if failed:
            for record in reports:
                logger.handle(record)
