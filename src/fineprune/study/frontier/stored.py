"""Draw the frontier from what was measured before: nothing is measured, and no model is opened."""

from pathlib import Path

from fineprune.errors import FinepruneError
from fineprune.inference.bench.timing import processor
from fineprune.study.figures.style import Figure
from fineprune.study.frontier import shapes
from fineprune.study.frontier.drawing import draw
from fineprune.study.frontier.measurements import RECORD, content_of, read_measurements
from fineprune.study.frontier.points import common_place, points_of, tasks_in
from fineprune.study.frontier.recommendation import Limits, recommend


def stored_figures(folder: Path) -> list[tuple[Figure, list[str]]]:
    """Return the figures of each task in a folder: the frontier of measured runs, with the recommendation,
    and one by what was made smaller, where there are several such ways.

    Of several machines, it is this one's measurements, else those of the machine with most of them.
    """
    try:
        tasks = tasks_in([folder])
    except FinepruneError:  # nothing is finished there
        return []
    figures: list[tuple[Figure, list[str]]] = []
    for task in tasks:
        entries = {}
        for run in task.runs:
            if not (run.path / RECORD).is_file():
                continue
            length = run.recipe["training"].get("max_length") or 0
            content = content_of(run.path / "model", length)
            entries[run.path] = [e for e in read_measurements(run.path) if e.content == content]
        place = common_place((e for known in entries.values() for e in known), processor())
        # of one runtime, the last: the versions of its packages may have changed in between
        entries = {
            path: list({e.runtime: e for e in known if e.place == place}.values())
            for path, known in entries.items()
        }
        points = points_of(task, entries)
        if points:
            try:
                said = recommend(points, Limits()).lines()
            except FinepruneError as error:
                said = [str(error)]
            every = [entry for known in entries.values() for entry in known]
            figures.append((draw(task, points, every), said))
        if (figure := shapes.draw(task, points)) is not None:
            figures.append((figure, []))
    return figures
