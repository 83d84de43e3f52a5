"""Score the model of a run on its validation data or on other data: in float32, or in the engine."""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from transformers import ProgressCallback

from fineprune._extras import require
from fineprune._messages import listing
from fineprune._transformers_output import quiet
from fineprune.errors import FinepruneError
from fineprune.inference.accelerate import Dtype, accelerate
from fineprune.tasks.data import Evaluation, TaskData
from fineprune.tasks.kinds import data_for
from fineprune.tasks.model_config import is_unnamed, labels_of
from fineprune.tasks.opening import open_trained
from fineprune.training.host.processes import this_process
from fineprune.training.host.trainer import PruningTrainer
from fineprune.training.run.data_files import load_recipe
from fineprune.training.run.dense_answers import with_answers
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.recipe_trainer import Job, make_trainer
from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import read_json

_log = logging.getLogger("fineprune")
_TIMING = (
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "jit_compilation_time",
    "model_preparation_time",
)


def evaluate_run(
    folder: str | Path,
    validation: str | None = None,
    model_folder: str | Path | None = None,
    progress: bool = False,
    dtype: str | None = None,
) -> dict[str, float]:
    """Score the model of a finished run, or another model, such as its compact form, on validation data.

    Args:
        folder: The run; its recipe sets the task.
        validation: A file to score on; None: the recipe's validation data.
        model_folder: The model to score; None: the run's.
        progress: Show a bar if stderr is a terminal.
        dtype: Let the engine answer, in this type; None: torch does, in float32.

    Returns:
        The metrics as fractions, and the loss.

    Raises:
        FinepruneError: no such run, model or data, a model of another task, or a type that the engine does
            not have here.
    """
    require("recipes", "evaluate")
    folder = Path(folder)
    if validation is None:
        recipe, note = load_recipe(folder)
        if note is not None:
            _log.warning("%s", note)
    else:
        recipe = Recipe.load(folder / "recipe.yaml")
        recipe = replace(recipe, task=recipe.task.with_validation(validation))
    model, tokenizer, _ = open_trained(
        folder if model_folder is None else Path(model_folder), need_tokenizer=True
    )
    if model_folder is not None:
        _check_labels(model, Path(model_folder), folder)
    if dtype is not None:
        accelerate(model, cast(Dtype, dtype))  # which refuses other names
    return evaluate_model(model, tokenizer, recipe, folder, progress)


def evaluate_model(
    model: Any, tokenizer: Any, recipe: Recipe, folder: Path, progress: bool = False
) -> dict[str, float]:
    """Score a trained model on the validation data of a recipe.

    Args:
        model: a model in evaluation mode, which determines the meaning of the labels.
        tokenizer: the model's.
        recipe: sets the task and the length of texts.
        folder: where transformers' Trainer may write; it does not.
        progress: show a bar if stderr is a terminal.
    """
    data = data_for(model, recipe.task)
    with quiet():
        job = Job(recipe, data, evaluation_of(recipe, data, tokenizer), tokenizer)
        trainer = make_trainer(job, model, folder, progress=False)
        if progress and sys.stderr.isatty():
            trainer.add_callback(ProgressCallback)
        return scores(trainer, job.evaluation)


def _check_labels(model: Any, place: Path, run: Path) -> None:
    """Refuse a model with other labels than the run's, or say that they are taken by their order.

    Labels of the data may be the numbers of classes, whatever a model calls these.
    """
    try:
        config = read_json(run / "model" / "config.json")
        own, names = tuple(map(str, config["id2label"].values())), labels_of(model)
    except (OSError, EngineError, KeyError, TypeError, AttributeError):
        return  # the data are read by the model's labels all the same
    if {name.casefold() for name in own} == {name.casefold() for name in names}:
        return
    said = f"{place}: its labels are {listing(names)}, and those of {run} are {listing(own)}"
    unnamed = any(map(is_unnamed, (*own, *names)))
    if len(names) != len(own) or not (unnamed or all(name.isdigit() for name in own)):
        raise FinepruneError(f"{said}; give a model of the same task")
    if not unnamed:
        _log.warning("%s: taken in their order", said)


@contextlib.contextmanager
def in_float32(trainer: PruningTrainer) -> Iterator[None]:
    """Let a trainer that trains in bfloat16 evaluate in float32 while the block runs.

    The process has one precision for all its trainers, so another trainer would not help.
    """
    accelerator: Any = trainer.accelerator
    native = accelerator.native_amp
    wraps = {name: vars(trainer.model).get(name) for name in ("forward", "_original_forward")}
    accelerator.native_amp = False
    trainer.model = accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    try:
        yield
    finally:
        accelerator.native_amp = native
        for (
            name,
            value,
        ) in wraps.items():  # with the second, which unwrapping takes away, it can be done again
            if value is not None:
                setattr(trainer.model, name, value)


def evaluation_of(recipe: Recipe, data: TaskData, tokenizer: Any, progress: bool = False) -> Evaluation:
    """Return the validation data as rows; where they have no labels, with the dense model's answers.

    With `progress` a line on stderr says of how many texts these are: a large model takes minutes for them.
    """
    evaluation = data.evaluation(tokenizer, recipe.training.max_length)
    if recipe.task.own_teacher and recipe.distillation is not None:
        if progress and this_process().is_main_process:
            count = len(evaluation.rows) + sum(len(further.rows) for further in evaluation.more.values())
            print(f"dense model: {count:,} texts to embed, then the first step", file=sys.stderr, flush=True)
        return with_answers(evaluation, str(recipe.distillation.teacher), data.collator(tokenizer))
    return evaluation


def scores(trainer: PruningTrainer, evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics of the validation data, as fractions, and the loss; then those of further sets."""
    main = trainer.compute_metrics
    with in_float32(trainer):
        metrics = dict(trainer.evaluate())
        try:
            for name, further in evaluation.more.items():
                trainer.compute_metrics = further.compute_metrics
                metrics |= trainer.evaluate(further.rows, metric_key_prefix=f"eval_{name}")
        finally:
            trainer.compute_metrics = main
    names = {key: key.removeprefix("eval_") for key in metrics if key.startswith("eval_")}
    values = {name: float(metrics[key]) for key, name in names.items() if not name.endswith(_TIMING)}
    not_finite = [name for name, value in values.items() if not math.isfinite(value)]
    if not_finite:  # a loss may be; JSON cannot express it
        _log.warning("left out, since nan or infinite: %s", ", ".join(not_finite))
    return {name: value for name, value in values.items() if name not in not_finite}
