"""Rehearse a run: load all, train a few steps of each stage in a temporary folder, estimate the rest."""

import contextlib
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from fineprune._extras import require
from fineprune._transformers_output import quiet
from fineprune._warnings import collected
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.pruning.finalizing import finalize
from fineprune.structure import shrinks
from fineprune.tasks.modeling import head_is_new
from fineprune.training.host.processes import this_process
from fineprune.training.host.trainer import PruningTrainer
from fineprune.training.run.callbacks import duration
from fineprune.training.run.densities import WHOLE
from fineprune.training.run.guidance import before, plan_of, schedule_of
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.recipe_trainer import Job
from fineprune.training.run.run_folder import write_model
from fineprune.training.run.shrinking import shrink_run
from fineprune.training.run.teacher_score import check_start
from fineprune.training.run.train import begin

_STEPS = 10  # timed in each stage, after one that warms up
_SECONDS = 20.0  # after which fewer steps are enough, though not fewer than 3
_BATCHES = 4  # of the validation data
_POINTS = 10  # of the schedule
_log = logging.getLogger("fineprune")


def dry_run(recipe: Recipe) -> dict[str, Any]:
    """Return what a run would do and about how long it would take, for JSON; nothing is left on disk.

    Each stage begins with the model that a few steps of the stage before made: pruned and shrunk to its end
    for `refine`, so that the sizes are those of the run. Warnings are shown as a run shows them.

    Raises:
        FinepruneError: for what a run would refuse, and in one of several processes.
    """
    require("recipes", "a recipe")
    if this_process().num_processes > 1:
        raise FinepruneError("--dry-run: only with a single process; start it without torchrun or accelerate")
    with tempfile.TemporaryDirectory(prefix="fineprune-") as folder, quiet(), collected() as texts:
        run = Path(folder) / "run"
        stages = _rehearse(recipe, run, run, "training", last=True)
        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
        "memory_mb": _peak_memory(),
        "accelerator_mb": None if gpu is None else round(gpu / 1e6),
        "warnings": texts,
    }


def lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield what `dry_run` returned as lines of text, without the warnings."""
    for stage in report["stages"]:
        name, examples = stage["stage"], stage["examples"]
        yield (
            f"{name:9} {stage['steps']:,} steps of batch {stage['batch_size']}; "
            f"{examples['train']:,} examples, {examples['validation']:,} to score"
        )
        rates = ", ".join(f"{part} {rate:g}" for part, rate in stage["learning_rates"].items())
        yield f"{'':9} learning rates: {rates} ({stage['schedule']})"
        if stage["densities"]:
            shares = ", ".join(f"{density:.1%}" for _, density in stage["densities"])
            yield f"{'':9} density at every tenth of the steps: {shares}"
        yield (
            f"{'':9} {stage['seconds_per_step']:.3g} s a step, {stage['evaluations']} evaluations of "
            f"{stage['seconds_per_evaluation']:.3g} s: {duration(stage['seconds'])}"
        )
    timed = " + ".join(str(stage["timed_steps"]) for stage in report["stages"])
    memory = f"{report['memory_mb'] / 1e3:.2g} GB of memory"
    if report["accelerator_mb"] is not None:
        memory += f", {report['accelerator_mb'] / 1e3:.2g} GB of the GPU's"
    yield f"in all about {duration(report['seconds'])}, at least {memory}; from {timed} steps on this machine"


def _rehearse(recipe: Recipe, folder: Path, home: Path, name: str, last: bool) -> list[dict[str, Any]]:
    """Return the estimates of the stages of a recipe; leave the model in the folder if more stages follow.

    The folders of the stages before are in `home`: the folder, or that of a run of several densities.
    """
    earlier = []
    if recipe.stage_before is not None:
        stage, recipe_before = recipe.stage_before
        place = home / stage
        chained = bool(recipe.earlier_densities)
        name_before = "training" if recipe.refine is not None or chained else "dense"
        earlier = _rehearse(recipe_before, place, home if chained else place, name_before, last=False)
        name = "training" if recipe.refine is None else "refine"
        recipe = recipe.last_stage(str(place))
    training = replace(recipe.training, report_to=())  # nothing is logged
    # Not computed: the teacher answers each batch, which takes longer where a run has several epochs.
    taught = recipe.distillation and replace(recipe.distillation, cache=False)
    try:
        estimate = _estimate(replace(recipe, training=training, distillation=taught), folder, last)
    except FinepruneError as error:
        raise FinepruneError(f"{name} stage: {error}" if earlier or not last else str(error)) from error
    return [*earlier, {"stage": name} | estimate]


def _estimate(recipe: Recipe, folder: Path, last: bool) -> dict[str, Any]:
    """Time a few steps of a recipe of one stage, and return what they say of all of it."""
    started = time.perf_counter()
    job, trainer = begin(recipe, folder, progress=False)
    loading = time.perf_counter() - started
    steps = trainer.args.max_steps
    plan = plan_of(job.recipe, trainer.model, steps, head_is_new(trainer.model))
    for warning in (*before(job.recipe, plan), check_start(job.recipe, job.data)):
        if warning:
            _log.warning("%s", warning)
    watch = _Stopwatch(trainer)
    trainer.add_callback(watch)
    with _without_early_end():
        trainer.train()
    step, evaluation = watch.mean, _seconds_per_row(trainer, job) * len(job.evaluation.rows)
    more = sum(len(rows) for rows in job.evaluation.more.values()) / max(1, len(job.evaluation.rows))
    evaluations = _evaluations(trainer)
    if not last:
        _leave_model(job, trainer, folder)
    training, pruner = job.recipe.training, trainer.pruner
    peaks = {
        "weights": training.learning_rate,
        "head": training.head_lr,
        "norms": training.norm_lr,
        "scores": None if pruner is None else pruner.score_lr,
    }
    return {
        "steps": steps,
        "batch_size": training.batch_size * training.accumulation,
        "examples": job.data.sizes(),
        "learning_rates": {part: rate for part, rate in peaks.items() if rate is not None},
        "schedule": training.schedule,
        "densities": _densities(job.recipe, steps),
        "timed_steps": len(watch.seconds),
        "seconds_per_step": step,
        "evaluations": evaluations,
        "seconds_per_evaluation": evaluation,
        "seconds": round(loading + steps * step + (evaluations + more) * evaluation, 1),
    }


class _Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Time steps in the middle of the pruning, where masks change, and stop the training after a few."""

    def __init__(self, trainer: PruningTrainer) -> None:
        self._pruner = trainer.pruner
        self._marks: list[float] = []

    @property
    def seconds(self) -> list[float]:
        """The seconds of each step after the first, which warms up; of the first where there is one alone."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        each = [end - start for start, end in pairs]
        return each[1:] or each

    @property
    def mean(self) -> float:
        """The mean, not the median: lengths of texts have a long tail, which takes its share of the run."""
        return fmean(self.seconds)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pruner = self._pruner
        if pruner is not None and not pruner.config.traits.holds_zeros:
            schedule = pruner.schedule
            middle = (schedule.warmup + schedule.total - schedule.cooldown) // 2
            pruner.steps_done = max(0, min(middle, schedule.total - _STEPS - 2))
        self._marks = [time.perf_counter()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._marks.append(time.perf_counter())
        done = len(self._marks) - 1
        late = self._marks[-1] - self._marks[0] > _SECONDS
        control.should_log = control.should_evaluate = control.should_save = False
        control.should_training_stop = done > _STEPS or (late and done > 3) or done >= state.max_steps


def _seconds_per_row(trainer: PruningTrainer, job: Job) -> float:
    """Time a few batches of the validation data, of rows spread over all of it, since they go by length."""
    rows = job.evaluation.rows
    count = min(len(rows), _BATCHES * int(trainer.args.eval_batch_size))
    chosen = rows.select([index * len(rows) // count for index in range(count)])
    started = time.perf_counter()
    trainer.evaluation_loop(trainer.get_eval_dataloader(chosen), "dry run", prediction_loss_only=True)
    return (time.perf_counter() - started) / max(1, count)


def _evaluations(trainer: PruningTrainer) -> int:
    """Return the number of evaluations of a run, that of the finished model among them."""
    args = trainer.args
    within, beyond = divmod(int(args.max_steps), int(args.eval_steps))
    spared = beyond == 0 and not args.load_best_model_at_end
    return within - spared + 1


def _densities(recipe: Recipe, steps: int) -> list[tuple[int, float]] | None:
    """Return the density at ten steps of the schedule; None where nothing is pruned or a penalty decides."""
    pruning = recipe.pruning
    if pruning is None or pruning.traits.holds_zeros or not pruning.controlled:
        return None
    schedule = schedule_of(recipe, steps)
    points = sorted({math.ceil(steps * part / _POINTS) for part in range(1, _POINTS + 1)})
    return [(at, round(schedule.density(at, pruning.density, pruning.initial_density), 6)) for at in points]


def _leave_model(job: Job, trainer: PruningTrainer, folder: Path) -> None:
    """Write the model of a stage as it will be at its end: of its density and shape, though not trained.

    The next stage may be another density, which begins with the model before it was made smaller.
    """
    pruner = trainer.pruner
    if pruner is not None:
        pruner.steps_done = pruner.schedule.total - 1
        with _without_early_end():
            pruner.step()
            finalize(trainer.model)
        if shrinks(pruner.config.structure):
            write_model(trainer.model, job.tokenizer, folder / WHOLE)
        shrink_run(trainer.model, job.recipe.pruning)
    write_model(trainer.model, job.tokenizer, folder / "model")


@contextlib.contextmanager
def _without_early_end() -> Iterator[None]:
    """Hold back the warning about a training that ends before its schedule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FinepruneWarning)
        yield


def _peak_memory() -> int:
    """Return the most resident memory that this process has had, in MB."""
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)
