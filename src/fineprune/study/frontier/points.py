"""Collect the runs of one task, and turn their measurements into points of a picture."""

import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fineprune.checkpoint.model_folder import MODEL_GONE
from fineprune.errors import FinepruneError
from fineprune.study.figures.chosen_runs import measured
from fineprune.study.figures.pareto import front
from fineprune.study.figures.style import listed
from fineprune.study.frontier.measurements import Measurement, Place
from fineprune.study.grid import DENSE
from fineprune.study.grouping import Group
from fineprune.study.study_folder import RunFolder, read_folder
from fineprune.study.task_labels import data_of
from fineprune.training.run.data_files import digest_of, load_recipe

BASE = "torch"
"""The runtime whose float32 answers the others are compared with, and in which the reference is timed."""

_SEED = re.compile(r"-s\d+(?=-|/|$)")


class Model(NamedTuple):
    """The finished runs of one setting: a point for each runtime."""

    name: str
    """That of the folder, without the seed; of a stage RUN/STAGE; behind the folder's where two are alike."""
    group: Group
    runs: list[RunFolder]

    @property
    def dense(self) -> bool:
        """Whether nothing was pruned."""
        return self.group.cell.method == DENSE


class Task(NamedTuple):
    """The models of one task, which share a picture."""

    name: str
    metric: str
    models: list[Model]
    notes: list[str]
    """Which runs of the folders are left out, of all tasks."""

    @property
    def runs(self) -> list[RunFolder]:
        """The runs of all models."""
        return [run for model in self.models for run in model.runs]


class Point(NamedTuple):
    """One model in one runtime: means over its seeds."""

    model: Model
    runtime: str
    score: float
    """In percent, of this runtime's own answers."""
    error: float | None
    """The standard error over the seeds, in percent; None for one seed."""
    milliseconds: float
    """Of one text."""
    megabytes: float
    memory: float | None
    """MB of the whole process."""
    speed: float
    """Times the speed of the reference."""
    seeds: int
    wrong: bool
    """A float32 runtime whose answers are not torch's: a fault, which is never recommended."""

    @property
    def usable(self) -> bool:
        """Whether the point may be on the front: its answers are right, and the runs learned something."""
        return not self.wrong and self.model.group.learned

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        about = {"model": self.model.name, "runs": [str(run.path) for run in self.model.runs]}
        return about | {"dense": self.model.dense} | {k: v for k, v in self._asdict().items() if k != "model"}


def tasks_in(folders: Sequence[str | Path]) -> list[Task]:
    """Return the finished runs in folders of studies, and single runs, by task.

    The dense stage of a run counts as a run, and so does each of several densities.

    Raises:
        FinepruneError: there is no such folder, or no finished run in them.
    """
    chosen: dict[Path, set[str] | None] = {}  # the runs of each folder; None: all of them
    for folder in map(Path, folders):
        runs = read_folder(folder)
        place = Path(os.path.abspath(folder))
        if len(runs) == 1 and runs[0].path == folder:
            names = chosen.setdefault(place.parent, set())
            if names is not None:
                names.add(place.name)
        else:
            chosen[place] = None
    by_task: dict[tuple[str, ...], list[Model]] = {}
    seen: set[str] = set()
    left_out: list[str] = []
    unusable: dict[str, list[RunFolder]] = {}  # by the reason
    for place, names in chosen.items():
        usable = []
        for run in _chosen(place, names):
            if (reason := _unusable(run)) is None:
                usable.append(run)
            else:
                unusable.setdefault(reason, []).append(run)
        found, twice = _models(usable, seen)
        left_out += twice
        for model in found:
            by_task.setdefault(_data(model), []).append(model)
    if not by_task:
        reasons = [f"{runs[0].path}: {reason}" for reason, runs in unusable.items()]
        raise FinepruneError(
            f"{', '.join(map(str, folders))}: no finished run in it; name the folder of a study, or runs"
            f"{f'; {reasons[0]}' if reasons else ''}"
        )
    left_out += [
        f"{listed(run.name for run in runs)}: left out, {reason}" for reason, runs in unusable.items()
    ]
    labels = list(map(_label, by_task.values()))
    tasks: list[Task] = []
    for label, models in zip(labels, by_task.values(), strict=True):
        more = f"-{len(tasks) + 1}" if labels.count(label) > 1 else ""
        tasks.append(Task(label + more, models[0].group.metric or "", _told_apart(models), left_out))
    return tasks


def _chosen(folder: Path, names: set[str] | None) -> list[RunFolder]:
    """Return the runs of a folder that have one of the names, None: all, with their stages."""
    runs = read_folder(folder, stages=True)
    return [run for run in runs if names is None or (run.stage_of or run.name) in names]


def _unusable(run: RunFolder) -> str | None:
    """Return why a run cannot be measured; None if it can."""
    if run.results is None:
        return next(note for note in run.notes if "results.json" in note)
    return None if (run.path / "model").is_dir() else MODEL_GONE


def _models(usable: Iterable[RunFolder], seen: set[str]) -> tuple[list[Model], list[str]]:
    """Return the models of runs, but those `seen` before, and which runs are left out as others are alike."""
    new = []
    for run in usable:
        place = os.path.realpath(run.path)  # a link and what it leads to are one run
        if place not in seen:
            new.append(run)
            seen.add(place)
    found = measured(new)
    models = []
    for group in found.groups:
        members = [found.runs[row.cell] for row in group.rows]
        models.append(Model(_SEED.sub("", members[0].name), group, members))
    return models, found.notes


def _told_apart(models: list[Model]) -> list[Model]:
    """Return models with names of their own: behind the folder's where several folders have one of a name."""
    counts = Counter(model.name for model in models)
    return [
        model
        if counts[model.name] == 1
        else model._replace(
            name=f"{model.runs[0].path.absolute().parents[model.name.count('/')].name}/{model.name}"
        )
        for model in models
    ]


def _label(models: list[Model]) -> str:
    """Return the name of a task: the one that its models share, else that of the data."""
    names = {model.group.cell.task.partition(",")[0] for model in models}
    return names.pop() if len(names) == 1 else data_of(models[0].runs[0].recipe)


def _data(model: Model) -> tuple[str, ...]:
    """Return what makes two models comparable: the validation data and the metric."""
    task = task_of(model.runs[0])
    file = task.get("validation") or task.get("train")  # some of which are held out
    where = ""
    if file and not task.get("hub"):
        where = digest_of(Path(str(file))) or os.path.abspath(str(file))
    answers = ("label", "labels", "text", "unanswerable", "words", "tags")
    said = [str(task.get(name)) for name in ("kind", "hub", "subset", "validation_split", *answers)]
    if task.get("kind") == "embedding":  # where the teacher's embeddings are what is to be met
        sections = [model.runs[0].recipe.get(name) for name in ("distillation", "model")]
        taught, own = (section if isinstance(section, dict) else {} for section in sections)
        said.append(str(taught.get("teacher") or own.get("name")))
        if not task.get("validation") and not task.get("validation_split"):
            said.append(str(task.get("loss")))  # by which the texts to score on are held out
    return where, *said, model.group.metric or ""


def task_of(run: RunFolder) -> dict[str, Any]:
    """Return the `task` section of a run's recipe, with its files where they are."""
    try:
        recipe, _ = load_recipe(run.path)
    except (OSError, FinepruneError):  # of another version
        section = run.recipe.get("task")
        return section if isinstance(section, dict) else {}
    return recipe.task.to_dict()


def reference_ms(entries: Iterable[Measurement]) -> float:
    """Return the reference's milliseconds a text: the median over the sessions."""
    return statistics.median(entry.reference_ms for entry in entries)


def points_of(task: Task, entries: dict[Path, list[Measurement]]) -> list[Point]:
    """Return the points of a task's models, by the measurements of each run, all of one place.

    A run's time is the reference's time over its ratio to the reference in the same rounds: sessions of a
    slower hour agree with the others.
    """
    done = [entry for run in task.runs for entry in entries.get(run.path, []) if entry.failed is None]
    if not done:
        return []
    base = reference_ms(done)
    points = []
    for model in task.models:
        by_runtime: dict[str, list[Measurement]] = {}
        for run in model.runs:
            for entry in entries.get(run.path, []):
                if entry.failed is None:
                    by_runtime.setdefault(entry.runtime, []).append(entry)
        points += [_point(model, runtime, found, base) for runtime, found in by_runtime.items()]
    return points


def _point(model: Model, runtime: str, found: list[Measurement], base: float) -> Point:
    scores = [100 * entry.score for entry in found]
    memory = [entry.memory for entry in found if entry.memory is not None]
    times = [base / entry.ratio for entry in found]
    return Point(
        model=model,
        runtime=runtime,
        score=statistics.fmean(scores),
        error=statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
        milliseconds=statistics.fmean(times),
        megabytes=statistics.fmean(entry.bytes for entry in found) / 1e6,
        memory=statistics.fmean(memory) if memory else None,
        speed=base / statistics.fmean(times),
        seeds=len(found),
        wrong=any(entry.wrong for entry in found),
    )


COSTS = {
    "milliseconds": "latency (ms a text)",
    "megabytes": "size of the files (MB)",
    "memory": "memory of the process (MB)",
}
"""What a score is shown against: a field of `Point`, and its label."""


def best_of(points: Sequence[Point], cost: str) -> list[int]:
    """Return the front of usable points in one of `COSTS`, by cost."""
    known = [place for place, point in enumerate(points) if point.usable and getattr(point, cost) is not None]
    pairs = [(getattr(points[place], cost), points[place].score) for place in known]
    return [known[index] for index in front(pairs)]


def common_place(entries: Iterable[Measurement], machine: str) -> Place | None:
    """Return the place of most measurements, this machine's first; None without any."""
    counts = Counter(entry.place for entry in entries)
    return max(counts, key=lambda place: (place.machine == machine, counts[place]), default=None)
