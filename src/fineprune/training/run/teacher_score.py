"""The score of a teacher beside its student's: a weak teacher makes a run worse, and nothing else says so."""

import math
from dataclasses import replace
from pathlib import Path

from fineprune.tasks.batches import fitting
from fineprune.tasks.data import TaskData
from fineprune.tasks.opening import open_trained
from fineprune.training.host.processes import this_process
from fineprune.training.run.evaluate import evaluate_model
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.results import read_results


def recorded_score(folder: str, recipe: Recipe, metric: str) -> float | None:
    """Return the score in the results of a finished run on the same task; None where there is none."""
    try:
        results = read_results(Path(folder) / "results.json")
        same = results["recipe"]["task"] == recipe.task.to_dict()
        length = results["recipe"]["training"]["max_length"] == recipe.training.max_length
        return float(results["scores"][metric]) if same and length else None
    except (OSError, ValueError, KeyError, TypeError):  # no run, or one of another version
        return None


def teacher_score(recipe: Recipe, metric: str, folder: Path) -> float | None:
    """Return the score of the recipe's teacher on its validation data, a fraction; None without a teacher.

    A teacher that is a run on the same task has it in its results; another one is evaluated, unless several
    processes train.

    Args:
        recipe: the recipe.
        metric: the main one of the task.
        folder: where transformers' Trainer may write; it does not.
    """
    source = None if recipe.distillation is None else recipe.distillation.teacher
    if source is None:
        return None
    known = recorded_score(source, recipe, metric)
    if (
        known is not None or this_process().num_processes > 1
    ):  # an error of one would leave the others waiting
        return known
    model, tokenizer, _ = open_trained(source, hub=True, need_tokenizer=True)
    length = fitting(recipe.training.max_length, model, tokenizer)  # of another family it may take fewer
    training = replace(recipe.training, max_length=length)
    alone = replace(recipe, training=training, pruning=None, distillation=None)
    return evaluate_model(model, tokenizer, alone, folder)[metric]


def weak_teacher(teacher: float, student: float, data: TaskData, when: str) -> str | None:
    """Return the warning about a teacher that scores less than its student; None where it does not.

    A difference below the standard error of an accuracy on as many examples is none.
    """
    share = min(1.0, max(0.0, student))
    if student - teacher <= math.sqrt(share * (1 - share) / max(1, data.sizes()["validation"])):
        return None
    return (
        f"the teacher's {data.metric} of {teacher:.2%} is below the {student:.2%} of the student {when}: it "
        "may hold the student back; name a better distillation.teacher, or a smaller distillation.alpha"
    )


def check_start(recipe: Recipe, data: TaskData) -> str | None:
    """Return the warning about a teacher below the run that the student starts from, by their results."""
    if recipe.distillation is None or recipe.distillation.teacher is None:
        return None
    teacher = recorded_score(recipe.distillation.teacher, recipe, data.metric)
    start = recorded_score(recipe.model.name, recipe, data.metric)
    if teacher is None or start is None:
        return None
    return weak_teacher(teacher, start, data, "that it begins with")
