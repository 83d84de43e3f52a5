"""The command `fineprune report`; modules that take seconds to import are imported in the call."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or a folder of runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page (default: DIR/report.html).")
    ] = None,
) -> None:
    """Write one HTML page about a run or a study, with its figures, from what is in the folder."""
    from fineprune.study.report import make_report

    made = make_report(folder, out)
    left = f"; {made.missing} things are missing, which it lists" if made.missing else ""
    print(f"{made.path}: {made.figures} figures{left}")
