"""Collect the content of the page as plain values for the template."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fineprune._files import WriteError
from fineprune._messages import one_line
from fineprune.errors import FinepruneError
from fineprune.study.grid import DENSE, Study
from fineprune.study.grouping import Row
from fineprune.study.paper_claims import claims
from fineprune.study.report import formatting, headline, pictures, tiles
from fineprune.study.report.comparison import dense_beside
from fineprune.study.report.formatting import Entry, Grid, numeric
from fineprune.study.report.settings import (
    commands,
    each_run,
    environment,
    facts,
    linked,
    settings,
    warnings_of,
)
from fineprune.study.report.units import units_of
from fineprune.study.rows import by_layer
from fineprune.study.study_folder import SOURCE, RunFolder, failures
from fineprune.study.tables import tables
from fineprune.training.run.mask_snapshot import NAME as RECORD

_OPEN = 30  # runs, up to which their list is open from the start
Made = TypeVar("Made")


class Note(NamedTuple):
    """A note on missing data, and the runs concerned."""

    text: str
    where: str


class _Attempts:
    """A runner of functions on untrusted files; a failure becomes a note, and the page goes on.

    A file that cannot be written is no such failure: the page could not be written either.
    """

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def __call__(self, what: str, make: Callable[[], Made]) -> Made | None:
        try:
            return make()
        except WriteError:
            raise
        except Exception as error:  # whatever is in a file: the page says so
            self.notes.append(Note(f"{what}: cannot be made ({type(error).__name__}: {one_line(error)})", ""))
            return None


def page_of(folder: Path, runs: list[RunFolder], out: Path, figures_in: Path, shown: str) -> dict[str, Any]:
    """Return the values that the template shows of the runs in a folder, for a page at `out`.

    Save the figures in the folder `figures_in`, which the page finds beside it under the name `shown`.
    """
    single = len(runs) == 1 and runs[0].path == folder
    attempt = _Attempts()
    failed = attempt("failures", lambda: failures(folder.resolve().parent if single else folder)) or {}
    found = headline.states(
        runs, {name: why for name, why in failed.items() if not single or name == runs[0].name}
    )
    rows = [Row(run.cell, run.results, by_layer(run.record)) for run in runs]
    dense = dense_beside(runs[0]) if single else None
    few = headline.one_seed(rows)
    figures = _figures(runs, figures_in, shown, attempt)
    frontier = [] if single else attempt("frontier", partial(_frontier, folder, figures_in, shown)) or []
    maps = attempt("map of the model", lambda: pictures.maps(runs, single)) or []
    best, left_out = _trimmed(None if single else attempt("headline", lambda: headline.best(runs)))
    each, _ = _trimmed(
        None if single else attempt("list of runs", lambda: each_run(runs, found, failed, out.parent))
    )
    name = folder.resolve().name
    values = {
        "title": headline.title_of(runs[0].cell) if single else name,
        "name": name,
        "single": single,
        "any": bool(found),
        "state": found[runs[0].name] if single else _state(found),
        "failed": [(name, failed[name]) for name, state in found.items() if state == "failed"],
        "tiles": attempt("headline", lambda: tiles.tiles(runs[0], dense)) if single else [],
        "details": attempt("details", lambda: tiles.details(runs[0], dense)) or [] if single else [],
        "density": headline.DENSITY if any(row.cell.method != DENSE for row in rows) else "",
        "units": attempt("heads and neurons", lambda: units_of(runs[0].results)) if single else None,
        "dense": None if dense is None else linked(dense.path, out.parent),
        "best": best,
        "legend": headline.legend(left_out, few),
        "unmeasured": headline.unmeasured(
            folder, left_out, timed=any("latency" in figure.title for figure, _ in frontier)
        ),
        "tables": _shown_tables(runs, rows, single, attempt, dense),
        "one_seed": headline.ONE_SEED if few else "",
        "claims": attempt(
            "claims", lambda: claims(rows) if _compared(rows) and _repeats_paper(folder) else []
        ),
        "remarks": headline.remarks(runs),
        "warnings": warnings_of(runs[0]) if single else [],
        "figures": figures.drawn,
        "sentences": figures.sentences,
        "missing": figures.missing,
        "frontier": frontier,
        "maps": [(run.name, headline.title_of(run.cell), made) for run, made in maps],
        "masks": [made.masks for _, made in maps],
        "no_maps": _no_maps(runs),
        "settings": attempt("settings", lambda: settings(runs)) or [],
        "commands": commands(folder, runs, single),
        "facts": attempt("length", lambda: facts(runs[0])) or [] if single else [],
        "each": each,
        "open": len(found) <= _OPEN,
        "environment": environment(runs),
    }
    return values | {"notes": [*attempt.notes, *_notes(runs)]}


class _Figures(NamedTuple):
    """The figures with data, those that a sentence says, by title, and a line for each of the others."""

    drawn: list[pictures.Drawn]
    sentences: list[tuple[str, str]]
    missing: list[str]


def _figures(runs: Sequence[RunFolder], place: Path, shown: str, attempt: _Attempts) -> _Figures:
    """Draw the figures of the runs."""
    drawn, sentences, missing = found = _Figures([], [], [])
    if not runs:
        return found
    from fineprune.study.figures import drawings

    for what, make in drawings(runs):
        figure = attempt(f"figure {what}", make)
        if isinstance(figure, str):
            missing.append(f"{what}: {figure}")
        elif figure is not None and figure.sentence:
            sentences.append((figure.title, figure.sentence))
        elif figure is not None:
            one = attempt(f"figure {figure.name}", partial(pictures.draw, figure, place, shown))
            drawn.extend([] if one is None else [one])
    return found


def _frontier(folder: Path, place: Path, shown: str) -> list[tuple[pictures.Drawn, list[str]]]:
    """Return the figures of score against latency that `fineprune frontier` has measured, with its words."""
    from fineprune.study.frontier.stored import stored_figures

    return [(pictures.draw(figure, place, shown), said) for figure, said in stored_figures(folder)]


def _no_maps(runs: Sequence[RunFolder]) -> str:
    """Return the reason why there is no map."""
    if not runs:
        return "There are no runs."
    if all(run.cell.method == DENSE for run in runs):
        return "A dense run has no masks."
    return f"No finished run has its masks with it ({RECORD})."


def _trimmed(grid: Grid | None) -> tuple[Grid | None, list[str]]:
    return formatting.trimmed(grid) if grid is not None and grid.lines else (None, [])


def _shown_tables(
    runs: Sequence[RunFolder], rows: list[Row], single: bool, attempt: _Attempts, dense: Any
) -> list[Grid]:
    """Return the scores of a run, or the tables of a study."""
    if single:
        return attempt("scores", lambda: _scores(runs[0], dense)) or []
    return attempt("tables", lambda: _tables(rows)) or []


def _scores(run: RunFolder, dense: Any) -> list[Grid]:
    if run.results is None:
        return []
    columns = [Entry("metric"), Entry("this run", number=True)]
    columns += [Entry(dense.path.name, number=True)] if dense else []
    lines = []
    for metric, score in run.results["scores"].items():
        line = [Entry(str(metric)), numeric(score)]
        lines.append(line + ([numeric(dense.scores.get(metric))] if dense else []))
    return [Grid("Scores on the validation data", columns, lines)]


def _tables(rows: list[Row]) -> list[Grid]:
    grids = []
    for table in tables(rows):
        words_of = ("density", "method")
        columns = [Entry(column, number=column not in words_of) for column in table.columns]
        lines = [
            [
                Entry(text, number=columns[column].number, best=(line, column) in table.best)
                for column, text in enumerate(texts)
            ]
            for line, texts in enumerate(table.lines)
        ]
        grids.append(Grid(table.title, columns, lines))
    return grids


def _compared(rows: list[Row]) -> bool:
    methods = {row.cell.method for row in rows if row.results is not None and row.cell.method != DENSE}
    return len(methods) > 1


def _repeats_paper(folder: Path) -> bool:
    """Return whether the runs are those of a study that repeats the paper."""
    try:
        return Study.load(folder / SOURCE).claims
    except FinepruneError:
        return False


def _state(found: dict[str, str]) -> str:
    """Return the numbers of finished and other runs as a text."""
    if not found:
        return "No runs are in this folder: a run is a folder with a recipe.yaml, or with results.json."
    counts = [(state, list(found.values()).count(state)) for state in ("finished", "not finished", "failed")]
    said = ", ".join(f"{count} {state}" for state, count in counts if count)
    return f"{formatting.counted(len(found), 'run')}: {said}"


def _notes(runs: Sequence[RunFolder]) -> list[Note]:
    """Return the notes of the runs on missing data; runs with the same note share a line."""
    runs_by_note: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            runs_by_note.setdefault(note, []).append(run.name)
    return [Note(text, formatting.listed(names)) for text, names in runs_by_note.items()]
