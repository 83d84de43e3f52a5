"""Show how results were made: the settings, the runs one by one, the commands, the environment."""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from fineprune.study.report import formatting
from fineprune.study.report.comparison import progress
from fineprune.study.report.formatting import NONE, Entry, Grid, numeric, percent
from fineprune.study.study_folder import PAGE, SOURCE, RunFolder
from fineprune.training.run.results import fastest, size_of

_NUMBERS = (
    *("score", "density", "kept", "of", "steps", "seconds"),
    *("packed, float32", "dense", "speed", "warnings"),
)
"""The columns of numbers in the list of runs."""


class Settings(NamedTuple):
    """A recipe, or the common part of several."""

    title: str
    yaml: str
    differ: list[str]
    """The settings that these runs do not share."""


def settings(runs: Sequence[RunFolder]) -> list[Settings]:
    """Return the recipe of a run; of several, the common part by task."""
    sections = []
    for task in dict.fromkeys(run.cell.task for run in runs):
        recipes = [run.recipe for run in runs if run.cell.task == task and run.recipe]
        if not recipes:
            sections.append(Settings(task, "no recipe can be read", []))
            continue
        shared, differ = common(recipes)
        text = yaml.safe_dump(shared, sort_keys=False, allow_unicode=True)
        sections.append(Settings(task, text, differ))
    return sections


def common(recipes: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that all recipes share, and the dotted names of the others."""
    shared, differ = dict[str, Any](), list[str]()
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        values = [recipe.get(key) for recipe in recipes]
        sections = [value for value in values if isinstance(value, dict)]
        if all(value == values[0] for value in values):
            shared[key] = values[0]
        elif sections and len(sections) == sum(value is not None for value in values):
            inside, others = common(sections)  # dense runs lack the section of pruning
            differ += [] if len(sections) == len(values) else [str(key)]
            differ += [f"{key}.{name}" for name in others]
            shared[key] = inside
        else:
            differ.append(str(key))
    return shared, differ


def commands(folder: Path, runs: Sequence[RunFolder], single: bool) -> list[str]:
    """Return the commands that repeat the runs, and that continue an interrupted run."""
    if not runs:
        return []
    place = str(folder).rstrip("/")
    if not single:
        study = f"fineprune study {shlex.quote(f'{place}/{SOURCE}')} --out {shlex.quote(place)}"
        one = f"fineprune run {shlex.quote(place)}/RUN/recipe.yaml --out NEW_FOLDER"
        return [study, one] if (folder / SOURCE).is_file() else [one]
    recipe, out = shlex.quote(f"{place}/recipe.yaml"), shlex.quote(f"{place}-again")
    again = [f"fineprune run {recipe} --out {out}"]
    if runs[0].results is None:
        again.insert(0, f"fineprune run {recipe} --out {shlex.quote(place)} --resume")
    return again


def facts(run: RunFolder) -> list[Entry]:
    """Return cells with the steps, seconds and examples of a run; [] if it is not finished."""
    results = run.results
    if results is None:
        return []
    examples = results.get("examples")
    sizes = examples.items() if isinstance(examples, dict) else ()
    counts = [f"{name}: {number:,}" for name, number in sizes if formatting.number_of(number) is not None]
    return [
        Entry(f"{results['steps']:,} steps in {results['seconds']:,.0f} s"),
        *([Entry(f"examples: {', '.join(counts)}")] if counts else []),
    ]


def each_run(runs: Sequence[RunFolder], found: dict[str, str], failed: dict[str, str], beside: Path) -> Grid:
    """Return a line for each run, with a link to its own page if that exists."""
    by_name = {run.name: run for run in runs}
    lines = [_line(name, by_name.get(name), state, failed, beside) for name, state in sorted(found.items())]
    columns = [Entry("run"), Entry("state"), *(Entry(text, number=True) for text in _NUMBERS)]
    return Grid("Each run", columns, lines)


def warnings_of(run: RunFolder) -> list[str]:
    """Return what a finished run was warned of."""
    warned = (run.results or {}).get("warnings")
    return [str(text) for text in warned] if isinstance(warned, list) else []


def environment(runs: Iterable[RunFolder]) -> list[tuple[str, str]]:
    """Return the environment of the runs; several values of a name are all listed."""
    values_by_name: dict[str, dict[str, None]] = {}
    for run in runs:
        entries = (run.results or {}).get("environment")
        for name, value in entries.items() if isinstance(entries, dict) else ():
            values_by_name.setdefault(str(name), {})[str(value)] = None
    return [(name, ", ".join(values)) for name, values in values_by_name.items()]


def linked(run: Path, beside: Path) -> Entry:
    """Return a run's name with a link to its page, if it has one, from a page in the folder `beside`."""
    page = run.resolve() / PAGE
    if not page.is_file():
        return Entry(run.name)
    seen = os.path.relpath(page, beside.resolve()).replace(os.sep, "/")
    return Entry(run.name, href=quote(os.fsencode(seen)))


def _line(name: str, run: RunFolder | None, state: str, failed: dict[str, str], beside: Path) -> list[Entry]:
    said = f"failed: {failed[name]}" if state == "failed" else state
    if run is None:
        return [Entry(name), Entry(said), *(Entry(NONE, number=True) for _ in _NUMBERS)]
    first = linked(run.path, beside)
    if run.results is None:
        note = f"{said}: {progress(run)}" if state != "failed" else said
        return [first, Entry(note), *(Entry(NONE, number=True) for _ in _NUMBERS)]
    results, size, speed = run.results, size_of(run.results), fastest(run.timings)
    counts = [numeric(results[name], f"{results[name]:,}") for name in ("kept", "total", "steps")]
    packed = size and size.packed["float32"]
    warned = len(warnings_of(run)) or None
    return [
        first,
        Entry(f"{state}, learned nothing" if results.get("constant") is True else state),
        numeric(results["score"], percent(results["score"])),
        numeric(results["density"], percent(results["density"], 2)),
        *counts,
        numeric(results["seconds"], f"{results['seconds']:,.0f}"),
        numeric(packed, "" if packed is None else formatting.megabytes(packed)),
        numeric(size and size.dense, "" if size is None else formatting.megabytes(size.dense)),
        numeric(speed and speed.ratio, "" if speed is None else formatting.times(speed.ratio)),
        numeric(warned, f"{warned}"),
    ]
