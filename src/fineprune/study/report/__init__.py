"""Write one HTML page about a run or a study: remaining weights, lost score, and the map of the weights."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fineprune._messages import one_line
from fineprune.errors import FinepruneError


class Report(NamedTuple):
    """The page that was written."""

    path: Path
    figures: int
    """Pictures on it; each is in a folder beside it, with its data."""

    missing: int
    """The number of lines on it that say what is missing."""


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, or of the runs in a folder, and its figures beside it; return its path.

    The page is `folder`/report.html, or `out`. Its figures are in `folder`/figures; those of a page
    elsewhere, NAME.html, are in NAME-figures beside it. The page lists missing or broken data of a run.

    Raises:
        FinepruneError: there is no such folder, or a place cannot be written; nothing is left then.
    """
    return make_report(folder, out).path


def make_report(folder: str | Path, out: str | Path | None = None) -> Report:
    """Write the page as `write_report`, and return what is on it."""
    from fineprune._extras import require
    from fineprune._files import WriteError, staged_files, write_text

    require("study", "a page")
    from fineprune.study.report.page import page_of
    from fineprune.study.report.render import render
    from fineprune.study.study_folder import PAGE, read_folder

    folder = Path(folder)
    path = folder / PAGE if out is None else Path(out)
    runs = read_folder(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise FinepruneError(f"{path}: cannot be written ({why}); name a file with -o") from error
    name = "figures" if path.parent.resolve() == folder.resolve() else f"{path.stem}-figures"
    place = path.parent / name
    with staged_files(place) as figures:
        try:
            page = page_of(folder, runs, path, figures, name)
        except WriteError as error:
            raise WriteError(place, error.reason) from error
        write_text(path, render(page))
    return Report(path, len(page["figures"]), len(page["missing"]) + len(page["notes"]))


def leave_page(folder: Path, say: Callable[[str], object] | None = None) -> None:
    """Write the page of a finished run, or of the runs in a folder, and say where it is.

    An error costs nothing but the page: it is one line on stderr.
    """
    try:
        path = write_report(folder)
    except Exception as error:  # a picture, a template, a full disk
        kind = "" if isinstance(error, FinepruneError) else f"{type(error).__name__}: "
        print(f"fineprune: no page: {kind}{one_line(error)}", file=sys.stderr)
        return
    if say is not None:
        say(f"page: {path}")
