"""Build the trainer of a recipe: its arguments, its teacher, its reports."""

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from fineprune._messages import one_line
from fineprune.errors import FinepruneError
from fineprune.tasks.batches import fitting
from fineprune.tasks.data import Evaluation, TaskData
from fineprune.tasks.kinds import kind_named
from fineprune.training.distillation.heads import head_of
from fineprune.training.distillation.teacher import load_teacher
from fineprune.training.distillation.teacher_tokens import (
    WHOLE_TEXTS,
    reads_otherwise,
    with_teacher_columns,
)
from fineprune.training.host.processes import this_process
from fineprune.training.host.rated_trainer import RatedTrainer
from fineprune.training.host.trainer import PruningTrainer
from fineprune.training.run.callbacks import OneLastEvaluation, ProgressBar, ProgressLines
from fineprune.training.run.constant_answers import Watched
from fineprune.training.run.layer_drop import drop_layers
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.run_folder import TEACHER_LOGITS

_LINES = 50  # of metrics.jsonl at least, for curves
_TENSORBOARD = "tensorboard"
_EVALUATIONS = 0.6  # of the examples that are trained on, at most: a fifth of the passes forward


class Job(NamedTuple):
    """A recipe with its data as rows for a model."""

    recipe: Recipe
    data: TaskData
    evaluation: Evaluation
    tokenizer: Any


def make_trainer(job: Job, model: Any, folder: Path, progress: bool) -> PruningTrainer:
    """Return the trainer of a recipe.

    Args:
        job: The recipe with its data; without training data the trainer can only evaluate.
        model: The model, not prepared.
        folder: The folder of the checkpoints.
        progress: Show a bar on a terminal; elsewhere print lines.
    """
    recipe, data, evaluation, tokenizer = job
    kind = kind_named(data.kind)
    train = data.train_rows(tokenizer, recipe.training.max_length)
    if train is not None and recipe.training.layer_drop:
        drop_layers(model, recipe.training.layer_drop)
    teaching: dict[str, Any] = {}
    if train is not None:
        train, teaching = _taught(job, train, folder.parent)
        if teaching.get("teacher_logits") and progress and this_process().is_main_process:
            print(
                f"teacher: answers {len(train):,} rows, unless these answers are stored, then the first step",
                file=sys.stderr,
                flush=True,
            )
    trackers = [] if train is None else [_tracker(name, folder) for name in recipe.training.report_to]
    trainer = RatedTrainer(
        rates=recipe.training.rates,
        fused=recipe.model.attention is None,
        model=model,
        args=_arguments(job, None if train is None else len(train), folder, progress),
        pruning=recipe.pruning if train is not None else None,
        **teaching,
        data_collator=data.collator(tokenizer),
        train_dataset=train,
        eval_dataset=evaluation.rows,
        compute_metrics=Watched(evaluation.compute_metrics, kind.head(model.config), model.config.id2label),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.add_callback(ProgressBar if sys.stderr.isatty() else ProgressLines)
    trainer.add_callback(OneLastEvaluation)
    for tracker in trackers:
        trainer.add_callback(tracker)
    return trainer


def _tracker(name: str, checkpoints: Path) -> TrainerCallback:
    """Return the callback of a tracker; TensorBoard's files go beside the checkpoints, which are not kept."""
    try:
        tracker: TrainerCallback = INTEGRATION_TO_CALLBACK[name]()
    except (RuntimeError, ImportError) as error:  # its package is not installed
        raise FinepruneError(
            f"training.report_to={name!r}: {one_line(error)}; install it, or leave it out"
        ) from error
    if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
        tracker.logging_dir = str(checkpoints.parent / _TENSORBOARD)
    return tracker


def _arguments(job: Job, rows: int | None, folder: Path, progress: bool) -> TrainingArguments:
    """Return the arguments of transformers' Trainer; `rows` are those of the training data, None for none."""
    training = job.recipe.training
    count = this_process().num_processes
    steps = training.steps
    if steps is None:
        per_step = training.batch_size * training.accumulation
        steps = max(1, round((training.epochs or 0) * (rows or 0) / per_step))
    every = training.evaluate_every or max(1, steps // 10)
    evaluate = every
    if training.evaluate_every is None and not training.keep_best:
        seen = steps * training.batch_size * training.accumulation
        evaluate *= tenths_between(seen, len(job.evaluation.rows))
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size // count,
        per_device_eval_batch_size=max(1, 64 // count),
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate or 0.0,  # None only where nothing is trained
        lr_scheduler_type="linear",
        warmup_steps=0 if rows is None else training.warmup_steps(steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),  # or bf16 is refused
        seed=training.seed,
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        eval_strategy="steps",
        eval_steps=evaluate,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=training.keep_best,
        metric_for_best_model=job.data.metric,
        greater_is_better=True,
        logging_steps=max(1, min(every // 5, steps // _LINES)),
        logging_nan_inf_filter=False,
        report_to=[],  # trackers are callbacks of their own
        disable_tqdm=not (progress and sys.stderr.isatty()),
        dataloader_pin_memory=False,
    )


def tenths_between(trained: int, evaluated: int) -> int:
    """Return how many tenths of a run go by between evaluations: these take about a fifth of it at most.

    Five tenths are the most: a run of few steps on large validation data is evaluated once on its way.

    Args:
        trained: the examples of all steps; each takes three passes forward, a teacher's one more.
        evaluated: the examples of the validation data; each takes one, perhaps in a coarser type.
    """
    return min(5, max(1, math.ceil(10 * evaluated / (_EVALUATIONS * max(1, trained)))))


def _taught(job: Job, train: Any, out: Path) -> tuple[Any, dict[str, Any]]:
    """Return the training rows, in a teacher's own tokens, too, where it has others, and the trainer's
    arguments for the teacher; none where it has no share in the loss.
    """
    recipe, data, section = job.recipe, job.data, job.recipe.distillation
    if section is None or (recipe.task.own_loss and not section.loss.teaches):
        return train, {}
    assert section.teacher is not None  # a recipe of one stage names it
    teacher = load_teacher(section.teacher)
    if reads_otherwise(job.tokenizer, teacher.tokenizer) and head_of(teacher.model) in WHOLE_TEXTS:
        length = fitting(recipe.training.max_length, *teacher[:2])
        train = with_teacher_columns(train, data.train_rows(teacher.tokenizer, length))
    run_cache = str(out / TEACHER_LOGITS) if section.cache else None
    folder = section.cache if isinstance(section.cache, str) else run_cache
    return train, {"teacher": teacher, "distillation": section.loss, "teacher_logits": folder}
