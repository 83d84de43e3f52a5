"""Check a recipe in a second, without torch and the network: what can be seen before anything is loaded."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fineprune.checkpoint.model_files import check_files, read_json
from fineprune.checkpoint.model_folder import find_model
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import kind_named
from fineprune.training.run.guidance import before, plan_without_model, schedule_of
from fineprune.training.run.recipe import Recipe, not_tuned
from fineprune.training.run.training_config import TrainingConfig, chosen_rate, chosen_steps

# Names of the same setting in the config.json of other families.
_WIDTH = ("hidden_size", "dim", "d_model", "n_embd")
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")


class Stage(NamedTuple):
    """One training of a recipe."""

    name: str
    """The section of its settings: "dense", "training" or "refine"."""

    training: TrainingConfig
    pruning: PruningConfig | None
    """How this training prunes; None: not."""


def stages_of(recipe: Recipe) -> Iterator[Stage]:
    """Yield the trainings of a recipe in their order."""
    if recipe.dense is not None:
        yield Stage("dense", recipe.dense, None)
    yield from _densities_of(recipe)
    if recipe.refine is not None:
        yield Stage("refine", recipe.refine, None)


def _densities_of(recipe: Recipe) -> Iterator[Stage]:
    """Yield the training of each density."""
    own = recipe
    if recipe.earlier_densities:
        yield from _densities_of(recipe.at_earlier_density)
        own = recipe.last_stage(recipe.model.name)
    yield Stage("training", own.training, own.pruning)


def check_recipe(recipe: Recipe) -> dict[str, Any]:
    """Check files, columns, model, teacher and plan, and return a summary, for JSON.

    Raises:
        FinepruneError: for the first thing that cannot work.
    """
    recipe.task.check_files()
    config = _model_config(recipe.model.name, "")
    if config is not None:
        _check_model(recipe, config)
        if recipe.is_tuned and _lacks_head(recipe, config):
            raise not_tuned(recipe.model.name)
    if recipe.pruning is not None and recipe.pruning.latency_table is not None:
        _check_table(recipe.pruning.latency_table)
    teacher = None if recipe.distillation is None else recipe.distillation.teacher
    notes = [_not_here(recipe.model.name)] if config is None else []
    if teacher is not None and _model_config(teacher, "teacher ") is None:
        notes.append(_not_here(teacher))
    stages = list(stages_of(recipe))
    warnings = [
        line for stage in stages for line in _plan(recipe, stage, config or {}, first=stage is stages[0])
    ]
    pruning = recipe.pruning
    return {
        "model": recipe.model.name,
        "task": recipe.task.kind,
        "data": list(recipe.task.files()) or [recipe.task.hub],
        "stages": [_described(stage, _setting(config or {}, _WIDTH)) for stage in stages],
        "pruning": pruning
        and {
            "method": pruning.method,
            "density": pruning.density if pruning.controlled else None,
            "earlier_densities": list(recipe.earlier_densities),
            "structure": pruning.to_dict()["structure"],
        },
        "teacher": teacher or (None if recipe.distillation is None else "the dense stage"),
        "warnings": warnings,
        "notes": notes,
    }


def summary_lines(checked: dict[str, Any]) -> Iterator[str]:
    """Yield what `check_recipe` returned as lines of text."""
    yield f"model     {checked['model']}"
    yield f"data      {', '.join(checked['data'])} ({checked['task']})"
    for stage in checked["stages"]:
        rate = stage["learning_rate"]
        if rate == 0:
            yield f"{stage['stage']:9} the model as it is"
            continue
        shown = "by the model's width" if rate is None else f"{rate:g}"
        yield f"{stage['stage']:9} {stage['length']}, batch {stage['batch_size']}, learning rate {shown}"
    if (pruning := checked["pruning"]) is not None:
        every = (*pruning["earlier_densities"], pruning["density"])
        density = ", ".join("as its penalty decides" if one is None else f"{one:.1%}" for one in every)
        yield f"pruning   {pruning['method']}, density {density}, structure {pruning['structure']}"
    if checked["teacher"] is not None:
        yield f"teacher   {checked['teacher']}"
    for name in ("warnings", "notes"):
        for line in checked[name]:
            yield f"{name[:-1]}: {line}"


def _check_table(path: str) -> None:
    """Raise unless a table of times can be read; a run says, before it trains, whether it is of the model."""
    try:
        read_json(Path(path))
    except (OSError, FinepruneError) as error:
        raise FinepruneError(
            f"latency_table: {path}: cannot be read ({error}); fineprune bench DIR --table writes one"
        ) from error


def _model_config(name: str, before_it: str) -> dict[str, Any] | None:
    """Return the content of a model's config.json; None if it is on the hub, and not in the cache here."""
    try:
        place = find_model(name)
        if isinstance(place, Path):
            check_files(place, tokenizer=True)
            path: Any = place / "config.json"
        else:
            path = _cached(place)
        content = read_json(Path(path)) if isinstance(path, (str, Path)) else {}
    except FinepruneError as error:
        raise FinepruneError(f"{before_it}{error}") from error
    if not isinstance(content, dict):
        raise FinepruneError(f"{before_it}{name}: its config.json holds no settings of a model")
    return content or None


def _cached(name: str) -> Any:
    """Return the path of the config.json of a model on the hub; no path where it is not in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise FinepruneError(
            f"{name}: neither a folder nor a name on the hub, such as ORGANIZATION/MODEL"
        ) from error
    return Path(path) if isinstance(path, str) else None


def _not_here(name: str) -> str:
    return f"{name}: no such folder, and not in the cache of the hub; a run downloads it"


def _check_model(recipe: Recipe, config: dict[str, Any]) -> None:
    """Raise `FinepruneError` for layers that the model does not have, and texts that are too long for it."""
    model, total = recipe.model, _setting(config, _LAYERS)
    highest = max(model.layers) + 1 if isinstance(model.layers, tuple) and model.layers else model.layers
    if total is not None and isinstance(highest, int) and highest > total:
        asked = list(model.layers) if isinstance(model.layers, tuple) else model.layers
        raise FinepruneError(f"model.layers={asked}: {model.name} has {total} layers")
    longest = _setting(config, ("max_position_embeddings",))
    for stage in stages_of(recipe):
        if longest is not None and longest < stage.training.max_length:
            raise FinepruneError(
                f"{stage.name}.max_length={stage.training.max_length}: {model.name} takes at most {longest} "
                "tokens"
            )


def _setting(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    """Return a whole number of a config.json, by the first of its names that is there."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _plan(recipe: Recipe, stage: Stage, config: dict[str, Any], first: bool) -> list[str]:
    """Return the warnings about the plan of a stage; none where its steps follow from the data.

    Args:
        recipe: The recipe.
        stage: The stage.
        config: The content of the model's config.json.
        first: Whether it is the first of its run.

    Raises:
        FinepruneError: the plan needs more steps.
    """
    training, steps = stage.training, stage.training.steps
    if steps is None:
        return []
    width = _setting(config, _WIDTH)
    rate = training.learning_rate
    if rate is None:
        rate = chosen_rate(width or 768, stage.pruning is not None)
    alone = replace(
        recipe,
        training=replace(training, learning_rate=rate),
        pruning=stage.pruning,
        dense=None,
        refine=None,
        distillation=None,
        earlier_densities=(),
    )
    try:
        warmup = training.warmup_steps(steps)
        schedule = schedule_of(alone, steps)
        for plan in (training.rates.plan, training.rates.scores):
            if plan is not None:
                plan.check(steps, warmup, schedule.cooldown)
    except FinepruneError as error:
        raise FinepruneError(str(error).replace("training.", f"{stage.name}.", 1)) from error
    lines = before(alone, plan_without_model(alone, steps, first and _lacks_head(recipe, config), width))
    return [line.replace("training.", f"{stage.name}.", 1) for line in lines]


def _lacks_head(recipe: Recipe, config: dict[str, Any]) -> bool:
    """Return whether a model's config.json names classes, and none of them has the head of the task."""
    if recipe.task.own_teacher:  # an embedding has no head
        return False
    names = config.get("architectures") or []
    suffix = kind_named(recipe.task.kind).suffix
    return bool(names) and not any(str(name).endswith(suffix) for name in names)


def _described(stage: Stage, width: int | None) -> dict[str, Any]:
    """Return a stage for the summary: its length, and the rate where it is known."""
    training, rate = stage.training, stage.training.learning_rate
    if rate is None and width is not None:
        rate = chosen_rate(width, stage.pruning is not None)
    if training.steps is not None:
        length = f"{training.steps:,} steps"
    elif training.epochs is not None:
        length = f"{training.epochs:g} epochs"
    else:
        length = f"{chosen_steps(0, 1):,} to {chosen_steps(2**40, 1):,} steps, by the number of examples"
    return {
        "stage": stage.name,
        "length": length,
        "steps": training.steps,
        "epochs": training.epochs,
        "batch_size": training.batch_size * training.accumulation,
        "learning_rate": rate,
    }
