"""Name the tasks of the runs of one folder by the data, and by the initial model where that differs."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

_PART = re.compile(r"(^|[-_])(train|training|valid|validation|val|dev|eval|test|data)$", re.IGNORECASE)
"""The end of a file's name that says which part of the data it holds, or nothing."""


class Named(NamedTuple):
    """A run: its folder's name, the task that it goes by, and its recipe."""

    name: str
    task: str
    recipe: Mapping[str, Any]


def labels(runs: Sequence[Named], folder: str) -> list[str]:
    """Return the task of each run of the folder of that name; one label means one task and one model.

    If the runs of a task differ in the data, or on the same data in the model, the label says so; if that is
    still ambiguous, the label has the settings of the data that differ, or the name of the first run.
    """
    recipes = {run.name: run.recipe for run in runs}
    models = {run.name: model_of(run.recipe, recipes, folder) for run in runs}
    keys = {
        run.name: (run.task, plain(run.recipe.get("task")), plain(models[run.name]))
        for run in runs
        if run.recipe  # one that cannot be read says nothing
    }
    first = {keys[run.name]: run for run in reversed(runs) if run.name in keys}
    labels_by_key = {}
    for key, run in first.items():
        same = [other for other in first if other[0] == run.task]
        parts = [run.task]
        if len({data for _, data, _ in same}) > 1 and (name := data_of(run.recipe)) != run.task:
            parts.append(name)
        if len({model for _, data, model in same if data == key[1]}) > 1:
            parts.append(_model(models[run.name]))
        labels_by_key[key] = ", ".join(filter(None, parts))
    _tell_apart(labels_by_key, {key: run.recipe.get("task") for key, run in first.items()})
    counts = Counter(labels_by_key.values())
    for key, label in labels_by_key.items():
        if counts[label] > 1:
            labels_by_key[key] = f"{label}, {first[key].name}"
    return [labels_by_key[keys[run.name]] if run.name in keys else run.task for run in runs]


def model_of(recipe: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], folder: str) -> Any:
    """Return the `model` section, with entries of the run that it continues, if that is in `others`.

    A model in the folder of one of these runs counts as the one that this run began with.
    """
    section, seen = recipe.get("model"), set[str]()
    while isinstance(section, dict) and (run := run_of(section.get("name"), folder)) in others:
        origin = others[str(run)].get("model")
        if run in seen or not isinstance(origin, dict):
            break
        seen.add(str(run))
        section = origin | {
            key: value for key, value in section.items() if key != "name" and value is not None
        }
    if isinstance(section, dict):  # whose code it runs is no part of a model
        return {key: value for key, value in section.items() if key != "trust_remote_code"}
    return section


def data_of(recipe: Mapping[str, Any]) -> str:
    """Return the name of the data: of the hub's set, of the file or its folder; without one, of the kind."""
    section = recipe.get("task")
    said = section if isinstance(section, dict) else {}
    if said.get("hub"):
        return str(said.get("subset") or PurePath(str(said["hub"])).name)
    path = PurePath(str(said.get("train") or said.get("validation") or ""))
    stem = path.name.partition(".")[0]
    name = _PART.sub("", stem)
    return name or path.parent.name or str(said.get("kind") or "")


def plain(section: Any) -> str:
    """Return a section as a text, without empty entries, which older recipes do not have."""
    if isinstance(section, dict):
        section = sorted((str(key), repr(value)) for key, value in section.items() if value is not None)
    return repr(section)


def _tell_apart(labels_by_key: dict[Any, str], sections: Mapping[Any, Any]) -> None:
    """Add to equal labels, in place, the settings of the data in which they differ."""
    for label in set(labels_by_key.values()):
        same = [key for key, other in labels_by_key.items() if other == label]
        given = {key: sections[key] for key in same if isinstance(sections[key], dict)}
        texts = dict.fromkeys(same, label)
        names = Counter(str(name) for section in given.values() for name in section)
        for name, _ in names.most_common():  # what all say goes first
            values = {key: section.get(name) for key, section in given.items()}
            if len(set(texts.values())) < len(same) and len(set(map(repr, values.values()))) > 1:
                for key, value in values.items():
                    texts[key] += f", {name} {'none' if value is None else value}"
        if len(set(texts.values())) == len(same):
            labels_by_key |= texts


def run_of(model: Any, folder: str) -> str | None:
    """Return the run whose folder a path leads into, if that may be one of the folder of that name.

    A path that leads nowhere may have led into that folder before it was moved.
    """
    path = PurePath(str(model))
    run = path.parent if path.name == "model" else path
    inside = run.parent.name == folder or (run.parent == PurePath(".") and run != path)
    below = path.is_absolute() or len(path.parts) > 2  # two parts may be a name on the hub
    return run.name if inside or (below and not os.path.exists(path)) else None


def _model(section: Any) -> str:
    said = section if isinstance(section, dict) else {"name": section}
    path = PurePath(str(said.get("name") or "model"))
    name = path.parent.name if path.name == "model" and path.parent.name else path.name
    return f"{name}, {said['layers']} layers" if said.get("layers") else name
