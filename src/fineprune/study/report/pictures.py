"""Draw the figures of the page, and choose the runs with a map on it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from fineprune.study.figures import Figure
from fineprune.study.grid import DENSE
from fineprune.study.grouping import Row, groups
from fineprune.study.report.headline import of_group
from fineprune.study.report.masks import Map, map_of
from fineprune.study.study_folder import RunFolder
from fineprune.training.run.mask_snapshot import NAME as RECORD

MAPS = 6
"""Runs of a study whose masks are on its page, at most."""

ROOM = 6_000_000
"""Bytes that they take, at most, where there are several: the page stays below 10 MB."""

_WIDTH = re.compile(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+)')


class Drawn(NamedTuple):
    """A figure on the page."""

    title: str
    caption: str
    svg: Markup
    width: int
    """In CSS pixels, as it was drawn."""

    data: str
    """The path of its data, relative to the page."""


def draw(figure: Figure, place: Path, shown: str) -> Drawn:
    """Return a figure as the page shows it, and save its files in the folder `place`.

    The page finds them in the folder of the name `shown` beside it.
    """
    figure.save(place)
    svg = figure.svg()
    match = _WIDTH.search(svg)
    width = round(float(match[1]) * 4 / 3) if match else 640  # from points
    return Drawn(figure.title, figure.caption, Markup(svg), width, f"{quote(shown)}/{figure.name}.csv")


def maps(runs: Sequence[RunFolder], single: bool) -> list[tuple[RunFolder, Map]]:
    """Return the maps of the runs with masks; of a study, those of a few."""
    chosen: list[tuple[RunFolder, Map]] = []
    size = 0
    for run in runs if single else _in_turns(_best(runs)):
        if run.record is None:
            continue
        found = map_of(run.record.matrices)
        size += sum(len(mask[part]) for mask in found.masks for part in ("picture", "rows", "columns"))
        if chosen and (len(chosen) == MAPS or size > ROOM):
            break
        chosen.append((run, found))
    return chosen


def _best(runs: Sequence[RunFolder]) -> list[list[RunFolder]]:
    """Return, by task, the best run of each method at the lowest density, the best method first."""
    every = groups([Row(run.cell, run.results) for run in runs])
    by_task: dict[str, dict[float, list[RunFolder]]] = {}
    for group in every:
        cell = group.cell
        if cell.method == DENSE or cell.density is None:
            continue
        with_masks = [run for run in of_group(group, runs) if (run.path / RECORD).is_file()]
        if with_masks:
            by_task.setdefault(cell.task, {}).setdefault(cell.density, []).extend(with_masks)
    best_by_task = []
    for densities in by_task.values():
        ranked = sorted(densities[min(densities)], key=_score, reverse=True)
        best: dict[str, RunFolder] = {}
        for run in ranked:
            best.setdefault(run.cell.method, run)
        best_by_task.append(list(best.values()))
    return best_by_task


def _in_turns(tasks: list[list[RunFolder]]) -> list[RunFolder]:
    """Return the best run of each task, then the second of each, and so on."""
    longest = max(map(len, tasks), default=0)
    return [members[turn] for turn in range(longest) for members in tasks if turn < len(members)]


def _score(run: RunFolder) -> tuple[bool, float]:
    """Return the sort key of the best run, which is none that learned nothing."""
    results = run.results or {}
    return results.get("constant") is not True, float(results.get("score", 0.0))
