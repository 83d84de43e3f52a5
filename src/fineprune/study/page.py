"""The report page that a run or a study leaves when it is done; one that fails costs nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path

from fineprune._messages import one_line
from fineprune.errors import FinepruneError


def leave_page(folder: Path, say: Callable[[str], object] | None = None) -> None:
    """Write the page of a run, or of the runs in a folder, and say where it is.

    For what is finished and written already: whatever goes wrong is a line on stderr.
    """
    try:
        from fineprune.study.report import write_report

        path = write_report(folder)
    except Exception as error:  # of a picture, a template, a full disk
        kind = "" if isinstance(error, FinepruneError) else f"{type(error).__name__}: "
        print(f"fineprune: no page: {kind}{one_line(error)}", file=sys.stderr)
        return
    if say is not None:
        say(f"page: {path}")
