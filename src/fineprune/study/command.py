"""The command `fineprune study`; modules that take seconds to import are imported in the call."""

import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fineprune.errors import FinepruneError
from fineprune.study.report import leave_page

if TYPE_CHECKING:
    from fineprune.study.grid import Run, Study
    from fineprune.study.runner import Planned


_STUDIES = ", ".join(sorted(path.stem for path in Path(__file__).parent.glob("studies/*.yaml")))


def study(
    source: Annotated[
        Path, typer.Argument(metavar="STUDY", help=f"A YAML file, or a study of the package: {_STUDIES}.")
    ],
    out: Annotated[Path | None, typer.Option(help="The folder of the runs (default: runs/NAME).")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at once (default: 1; with --ray all cores of the cluster)."),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on the Ray cluster of RAY_ADDRESS (needs the extra ray).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs, and run nothing.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Only make the tables of what is finished.")] = False,
) -> None:
    """Run a grid of recipes, several at once, and tabulate it; again, to go on where it was stopped."""
    from fineprune.study.grid import Study
    from fineprune.study.study_folder import FAILURES

    if dry_run and table:
        raise FinepruneError("study: give --dry-run or --table, not both")
    loaded = Study.load(source)
    place = out or Path("runs") / loaded.name
    if table:
        if not os.path.isdir(place):
            raise FinepruneError(
                f"{place}: no such folder; run the study first, or name its folder with --out"
            )
        _check_study(loaded, place)
        _tabulate(loaded, place)
        leave_page(place, print)
        return
    from fineprune.study.grid import FOLDER
    from fineprune.study.runner import plan, run_study
    from fineprune.training.run.builtin_recipes import locate

    runs = loaded.runs(place)
    text = locate(source, FOLDER, "study").read_text(encoding="utf-8")
    if dry_run:
        _print_plan(plan(runs, place), place)
        for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()):
            print(line)  # says how long it takes, in the studies of the package
        return
    _check_study(loaded, place)
    failures = run_study(runs, place, jobs, ray, lambda line: print(line, flush=True), text)
    _tabulate(loaded, place)
    for name in _without_newest_page(runs, place):
        leave_page(place / name)
    leave_page(place, print)
    for failure in failures:
        print(f"failed: {failure.run}: {failure.error}", file=sys.stderr)
    if failures:
        again = f"see {place / FAILURES}; the same command tries them again"
        print(f"fineprune: {len(failures)} of {len(runs)} runs failed; {again}", file=sys.stderr)
        raise typer.Exit(1)


def _without_newest_page(runs: "list[Run]", place: Path) -> list[str]:
    """Return the finished runs without a page, as after a kill before it was written, or with an older one.

    Older pages were made before a dense run that they are compared with had ended.
    """
    from fineprune.study.grid import DENSE
    from fineprune.study.study_folder import PAGE

    ended = dict[str, float]()
    for run in runs:
        path = place / run.name / "results.json"
        if run.cell.method == DENSE and not run.cell.distillation and path.is_file():
            ended[run.cell.task] = max(path.stat().st_mtime, ended.get(run.cell.task, 0.0))
    names = []
    for run in runs:
        page = place / run.name / PAGE
        compared = ended.get(run.cell.task, 0.0) if run.cell.method != DENSE else 0.0
        if page.is_file():
            due = page.stat().st_mtime < compared
        else:
            due = (place / run.name / "results.json").is_file()
        if due:
            names.append(run.name)
    return names


def _check_study(loaded: "Study", place: Path) -> None:
    """Raise where the folder has the runs of another study, whose tables would mix with this one's."""
    from fineprune.study.study_folder import SOURCE
    from fineprune.training.run.recipe_file import read_yaml

    try:
        there = read_yaml(place / SOURCE, "study")["name"] if (place / SOURCE).exists() else loaded.name
    except (FinepruneError, KeyError, TypeError):
        return  # a damaged copy, which this study replaces
    if there != loaded.name:
        raise FinepruneError(
            f"{place}: holds the study {there}, and this one is called {loaded.name}; name another folder "
            "with --out"
        )


def _tabulate(loaded: "Study", place: Path) -> None:
    """Print the tables and claims, and write them beside the runs."""
    from fineprune._files import write_json, write_text
    from fineprune.study import tables
    from fineprune.study.paper_claims import as_lines, claims
    from fineprune.study.rows import as_dicts, collect

    rows = collect(place, loaded.cells())
    study_tables = tables.tables(rows)
    text = tables.as_markdown(study_tables)
    terminal = sys.stdout.isatty()
    print(tables.as_text(study_tables, width=None if terminal else 160, color=terminal))
    if "±" in text:
        note = "±: the standard deviation over seeds"
        print(note)
        text += f"\n{note}\n"
    if loaded.claims:
        claim_lines = as_lines(claims(rows))
        text += f"\n### What the paper claims\n\n{claim_lines}"
        print(f"what the paper claims:\n{claim_lines}")
    try:
        write_json(place / "rows.json", as_dicts(rows))
        write_text(place / "tables.csv", tables.as_csv(rows))
        write_text(place / "tables.md", text)
    except FinepruneError as error:  # the tables are printed, and nothing that follows is lost
        print(f"fineprune: {error}; the tables are not kept", file=sys.stderr)
        return
    print(f"tables: {place / 'tables.md'}, tables.csv, rows.json")


def _print_plan(planned: "list[Planned]", place: Path) -> None:
    width = max(len(entry.run.name) for entry in planned)
    for entry in planned:
        state = "another recipe is in its folder" if entry.state == "differs" else entry.state
        print(f"{entry.run.name:{width}}  {state:9}  {entry.length}")
    told = ("finished", "no model", "cut", "damaged", "differs")
    counts = {state: sum(entry.state == state for entry in planned) for state in told}
    said = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    print(f"{len(planned)} runs{f', {said}' if said else ''}; folder: {place}")
