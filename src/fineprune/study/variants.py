"""Name runs by the settings in which they differ beyond method, density, scope, teacher and seed.

Runs are seeds of one setting only if everything else that a result depends on is equal. Versions, machines
and threads are not settings: they are listed with the environment.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import PurePath
from typing import Any, NamedTuple

from fineprune.config import Distillation, PruningConfig
from fineprune.study.grid import Cell
from fineprune.study.task_labels import run_of
from fineprune.training.run.densities import own_length
from fineprune.training.run.training_config import TrainingConfig

START, LENGTH = "start", "length"
_ALWAYS = (START, LENGTH)  # said wherever the runs of a task differ in them
# In the order in which they are said; then all others.
_FIRST = (*_ALWAYS, "learning_rate", "batch_size", "teacher", "alpha", "temperature", "score_lr", "penalty")
TRAINING = {entry.name: entry.default for entry in fields(TrainingConfig) if entry.default is not MISSING}
"""The defaults of the section `training`, for recipes that are older than a field."""

TRAINING["learning_rate"] = 3e-5  # of all models, before it followed from their width

_NOT_THERE = {"training": ("seed", "steps", "epochs"), "pruning": ("method", "density", "scope")}


class Setting(NamedTuple):
    """A value of one setting."""

    value: Hashable
    """What is compared."""

    text: str
    """How a row says it; empty: the usual case, which needs no word."""


Settings = Mapping[str, Setting]


def settings_of(recipe: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], folder: str) -> Settings:
    """Return the settings of a recipe by their short names, without those of `Cell`, the data and the model.

    Fields that are newer than the recipe have their defaults.

    Args:
        recipe: the resolved recipe.
        others: the recipes of the runs beside it, by name; a model or teacher may be one of theirs.
        folder: the name of the folder that they are in.
    """
    training = TRAINING | dict(recipe["training"])
    if earlier := recipe.get("earlier_densities"):
        training |= own_length(training, len(earlier))
    seed = training["seed"]
    if not training["keep_best"]:
        training["evaluate_every"] = None  # changes no result then
    start = _start(recipe.get("model"), seed, others, folder)
    if recipe.get("dense") is not None:
        start = _stage(recipe["dense"])
    found = {LENGTH: _length(training), START: start}
    found |= _plain("training", training)
    found |= _shape(recipe)
    if recipe["pruning"] is not None:
        found |= _plain("pruning", PruningConfig().to_dict() | recipe["pruning"], "pruning ")
    if recipe.get("distillation") is not None:
        taught = Distillation().to_dict() | recipe["distillation"]
        teacher = taught.pop("teacher", None)
        taught.pop("cache", None)
        found |= _plain("distillation", taught)
        found["teacher"] = _of_run(teacher, seed, others, folder, "teacher ")
    return found


def variants(runs: Sequence[tuple[Cell, Settings | None]]) -> list[str | None]:
    """Return, for each run, the settings that tell its group from others; None where nothing does.

    Start and length are said wherever the runs of a task differ in them; of the others the first ones that
    tell apart runs of one method, density, scope and teacher. A run without settings is the caller's to name.
    """
    found: list[str | None] = [None] * len(runs)
    tasks = dict.fromkeys(cell.task for cell, _ in runs)
    for task in tasks:
        known = {index: given for index, (cell, given) in enumerate(runs) if given and cell.task == task}
        common = [name for name in _ALWAYS if len({given[name].value for given in known.values()}) > 1]
        families: dict[tuple[Any, ...], list[int]] = {}
        for index in known:
            cell = runs[index][0]
            family = (cell.method, cell.structure, cell.scope, cell.distillation)
            families.setdefault(family, []).append(index)
        for members in families.values():
            members_settings = [(runs[index][0].density, known[index]) for index in members]
            for index, text in zip(members, _told_apart(members_settings, common), strict=True):
                found[index] = text or None
    return found


def differences(run: Settings, other: Settings) -> list[str]:
    """Return the settings in which another run differs, as "learning_rate 0.0002 (here 0.0003)"."""
    return [
        f"{other[name].text} (here {run[name].text.removeprefix(f'{name} ')})"
        for name in _ordered(other)
        if name != START and name in run and run[name].value != other[name].value
    ]


def _told_apart(runs: Sequence[tuple[float | None, Settings]], common: Sequence[str]) -> list[str]:
    """Return the texts of runs of one method, scope and teacher."""
    names = list(common)

    def kinds(chosen: Sequence[str]) -> int:
        return len({(density, *(given[name].value for name in chosen)) for density, given in runs})

    every = _ordered(runs[0][1])
    for name in every:
        if kinds(names) == kinds(every):
            break
        if name not in names and kinds([*names, name]) > kinds(names):
            names.append(name)
    texts = [", ".join(filter(None, (given[name].text for name in names))) for _, given in runs]
    # Two values may have one text: paths of one ending.
    kinds_by_text: dict[tuple[float | None, str], dict[Hashable, int]] = {}
    numbered = []
    for (density, given), text in zip(runs, texts, strict=True):
        same = kinds_by_text.setdefault((density, text), {})
        number = same.setdefault(tuple(given[name].value for name in names), len(same) + 1)
        numbered.append(text if number == 1 else f"{text} ({number})".strip())
    return numbered


def _ordered(given: Settings) -> list[str]:
    return [name for name in _FIRST if name in given] + [name for name in given if name not in _FIRST]


def _plain(section: str, values: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    """Return the settings of a section; `prefix` is said and used where training has the same name."""
    found = {}
    for key, value in values.items():
        if key not in _NOT_THERE.get(section, ()):
            name = prefix + key if key in TRAINING else key
            told = {None: "none", True: "true", False: "false"}.get(value) if _is_word(value) else f"{value}"
            found[name] = Setting(repr(value), f"{name} {told}")
    return found


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _length(training: Mapping[str, Any]) -> Setting:
    steps, epochs = training.get("steps"), training.get("epochs")
    if steps is not None:
        return Setting(f"{steps} steps", f"{steps:,} steps" if isinstance(steps, int) else f"{steps} steps")
    return Setting(f"{epochs} epochs", f"{epochs:g} epochs" if isinstance(epochs, (int, float)) else "")


def _start(model: Any, seed: Any, others: Mapping[str, Mapping[str, Any]], folder: str) -> Setting:
    """Return the run beside it whose model it began with; models of other places are part of the task."""
    name = model.get("name") if isinstance(model, dict) else model
    if run_of(name, folder) not in others:
        return Setting(None, "")
    return _of_run(name, seed, others, folder, "from ")


def _shape(recipe: Mapping[str, Any]) -> dict[str, Setting]:
    """Return how a run cut its model first, the densities before its own, and its refinement."""
    section, refine = recipe.get("model"), recipe.get("refine")
    model = section if isinstance(section, dict) else {}
    cut, rank = (model.get("structure"), model.get("density")), model.get("low_rank")
    stage = None if refine is None else _stage(refine).value
    earlier = tuple(recipe.get("earlier_densities") or ())
    return {
        "densities": Setting(earlier, f"after {', '.join(map(str, earlier))}" if earlier else ""),
        "cut": Setting(None, "") if cut == (None, None) else Setting(repr(cut), f"cut first to {cut[1]}"),
        "rank": Setting(repr(rank), "" if rank is None else f"of low rank, {rank}"),
        "refine": Setting(stage, "" if refine is None else f"{_refined(refine)}, {_length(refine).text}"),
    }


def _refined(refine: Mapping[str, Any]) -> str:
    """Return what the last stage did with the zeros of the pruned model."""
    if refine.get("fill") is not None:
        return "filled"
    return "refined, zeros held" if refine.get("hold_zeros") else "refined"


def _stage(dense: Mapping[str, Any]) -> Setting:
    """Return the dense stage of a run, whose model it began with."""
    settings = sorted(
        (name, repr(value)) for name, value in (TRAINING | dict(dense)).items() if name != "seed"
    )
    return Setting(repr(settings), f"from dense, {_length(dense).text}")


def _of_run(
    place: Any, seed: Any, others: Mapping[str, Mapping[str, Any]], folder: str, prefix: str
) -> Setting:
    """Return a model by the settings of its run, where that is beside it, else by its path.

    Each seed may have a model of its own, named after the seed.
    """
    run = run_of(place, folder)
    path = PurePath(str(place))
    path = path.parent if path.name == "model" else path
    ending = re.compile(rf"[-_. ]?s(?:eed)?[-_ ]?{re.escape(str(seed))}$")
    if run in others:
        rest = {name: recipe for name, recipe in others.items() if name != run}
        text = prefix + (ending.sub("", str(run)) or str(run))
        try:
            recipe = others[str(run)]
            told = sorted((name, one.value) for name, one in settings_of(recipe, rest, folder).items())
            return Setting(f"{told} {recipe['pruning'] and sorted(recipe['pruning'].items(), key=str)}", text)
        except (KeyError, TypeError, AttributeError, ValueError):
            return Setting(str(run), text)
    stripped = ending.sub("", str(path)) or str(path)
    return Setting(stripped, prefix + "/".join(PurePath(stripped).parts[-2:]))
