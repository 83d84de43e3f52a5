"""The command `fineprune frontier`; modules that take seconds to import are imported in the call."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from fineprune.study.frontier.points import Point, Task
    from fineprune.study.frontier.recommendation import Limits


def frontier(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="The folder of a study, or several, or runs.")
    ],
    within: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Points of the best dense score that may be lost (1, if no limit is given).",
        ),
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option(metavar="X", help="Milliseconds of a text, at most.")
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option(metavar="Y", help="MB of the model's files, at most.")
    ] = None,
    texts: Annotated[int, typer.Option(help="Validation examples that are scored, at most.")] = 1000,
    threads: Annotated[int, typer.Option(help="Threads of every runtime.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often each is timed, in turns.")] = 5,
    again: Annotated[bool, typer.Option("--again", help="Time anew what was measured before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show score against latency, size and memory of the runs of a study, and name the model to take.

    Every finished run is timed and scored in the engine and the other runtimes, the dense ones too. What was
    measured is kept in the folders of the runs; after Ctrl-C the same command goes on.
    """
    from fineprune._extras import require

    require("study", "frontier")
    from fineprune.study.frontier.measuring import Options, measure
    from fineprune.study.frontier.points import points_of, tasks_in
    from fineprune.study.frontier.recommendation import Limits

    limits = Limits(within, max_ms, max_mb)
    limits.check()
    tasks = tasks_in(folders)
    results = []
    for task in tasks:
        try:
            _check_number(task)
            found = measure(task, Options(texts, threads, rounds, again), _say)
        except FinepruneError as error:
            if len(tasks) == 1:
                raise
            _say(f"{task.name}: left out: {error}")  # the other tasks are measured all the same
            results.append(_refused(task, str(error)))
            continue
        points = points_of(task, found)
        results.append(_show(task, points, found, limits, folders[0], as_json))
    if as_json:
        print(json.dumps(results, allow_nan=False))
    refusals = [result["refused"] for result in results if result["refused"]]
    if refusals:
        raise FinepruneError("; ".join(refusals))


def _check_number(task: "Task") -> None:
    """Raise `FinepruneError` for a task with one model, which has nothing to be compared with."""
    if len(task.models) == 1:
        raise FinepruneError(
            f"{task.runs[0].path}: the one setting of its task; a frontier compares a dense run "
            "with pruned ones: name the folder of the study, or more folders; "
            f"fineprune bench times one model{''.join(f'; {note}' for note in task.notes)}"
        )


def _say(line: str) -> None:
    """Print a line of progress: on stderr, since --json has stdout."""
    print(f"frontier: {line}", file=sys.stderr, flush=True)


def _refused(task: "Task", reason: str) -> dict[str, Any]:
    """Return the values for JSON of a task that was not measured."""
    empty: dict[str, Any] = {"points": [], "about": "", "notes": [], "recommendation": None}
    about = {"task": task.name, "metric": task.metric, "picture": None}
    return about | empty | {"refused": f"{task.name}: {reason}"}


def _show(
    task: "Task", points: "Sequence[Point]", found: Any, limits: "Limits", folder: Path, as_json: bool
) -> dict[str, Any]:
    """Draw a task's figure, print its table and recommendation, and return them as values for JSON."""
    from fineprune.study.frontier.drawing import caption, draw
    from fineprune.study.frontier.notes import notes_of
    from fineprune.study.frontier.recommendation import recommend
    from fineprune.study.frontier.shapes import draw as draw_shapes

    entries = [entry for run in task.runs for entry in found[run.path]]
    notes = notes_of(task, found)
    choice, refused, about, picture = None, "", "", None
    if points:
        about = caption(points, entries)
        figure = draw(task, points, entries)
        place = folder / "figures"
        try:
            figure.save(place)
            picture = place / f"{figure.name}.png"
            if (shapes := draw_shapes(task, points)) is not None:
                shapes.save(place)
        except FinepruneError as error:  # what was measured in minutes is shown without a picture, too
            _say(f"{error}; the picture is not kept")
    try:
        choice = recommend(points, limits)
    except FinepruneError as error:
        refused = f"{task.name}: {error}"
    if not as_json:
        _print(task, points, [about, *notes])
        if choice is not None:
            for line in [*choice.lines(), *(f"    {line}" for line in choice.commands)]:
                print(line)
        if picture is not None:
            print(f"picture: {picture}, .svg, .csv")
    return {
        "task": task.name,
        "metric": task.metric,
        "points": [point.to_dict() for point in points],
        "about": about,
        "notes": notes,
        "recommendation": None if choice is None else choice.to_dict(),
        "refused": refused,
        "picture": None if picture is None else str(picture),
    }


def _print(task: "Task", points: "Sequence[Point]", texts: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fineprune.study.frontier.points import COSTS, best_of

    console = Console(
        highlight=False, soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else 160
    )
    table = Table(title=f"{task.name}: * is on the front")
    names = ("model", "runtime", f"{task.metric}, %", "ms a text", "MB", "MB of memory")
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right", no_wrap=True)
    fronts = {cost: set(best_of(points, cost)) for cost in COSTS}
    for index, point in enumerate(points):
        marks = {cost: " *" if index in best else "  " for cost, best in fronts.items()}
        learned = point.model.group.learned
        score = f"{point.score:.1f}" + ("" if point.error is None else f" ± {point.error:.1f}")
        table.add_row(
            point.model.name,
            point.runtime + (" WRONG" if point.wrong else "") + ("" if learned else " (learned nothing)"),
            score,
            f"{point.milliseconds:.2f}{marks['milliseconds']}",
            f"{point.megabytes:.1f}{marks['megabytes']}",
            "–" if point.memory is None else f"{point.memory:.0f}{marks['memory']}",
        )
    console.print(table)
    if any(point.error is not None for point in points):
        console.print("±: the standard error over seeds")
    for text in filter(None, texts):
        console.print(text)
