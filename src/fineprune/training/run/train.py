"""The run of one recipe: from a YAML file to a folder with a pruned model and its score.

The folder holds `recipe.yaml` (resolved), `metrics.jsonl` (a line per log), `checkpoints/` and
`teacher_logits/` (while the run is under way), `weights.npz` (of a pruning run: what pictures need),
`model/` (an ordinary model, zeros in place) and, written last, `results.json`. Whatever is there is
whole, so a run that was killed can be continued.
"""

import contextlib
import json
import logging
import math
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState

from fineprune._extras import require
from fineprune._files import replace_folder, write_json, write_text
from fineprune._messages import one_line
from fineprune._transformers_output import quiet
from fineprune._version import __version__
from fineprune.checkpoint import packing
from fineprune.checkpoint.loading import open_model
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement
from fineprune.pruning.finalizing import finalize
from fineprune.pruning.summary import summary
from fineprune.tasks.data import Evaluation, TaskData
from fineprune.tasks.kinds import data_for
from fineprune.tasks.model_config import longest_input
from fineprune.tasks.modeling import build_model
from fineprune.training.host import sealing
from fineprune.training.host.processes import share_of, this_process
from fineprune.training.host.stopping import StopsAtSignals
from fineprune.training.host.trainer import PruningTrainer
from fineprune.training.run.mask_snapshot import Recorder
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.run_folder import (
    CHECKPOINTS,
    TEACHER_LOGITS,
    claim,
    locked,
    resumable,
    tidy,
    tidy_later,
)

_log = logging.getLogger("fineprune")
_LINES = 50  # of metrics.jsonl at least, for curves


class _Job(NamedTuple):
    """A recipe with its data as rows for a model."""

    recipe: Recipe
    data: TaskData
    evaluation: Evaluation
    tokenizer: Any


def run_recipe(
    recipe: Recipe, out: str | Path, resume: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Train what `recipe` says into the folder `out`, and return what `results.json` holds.

    `resume` continues a run of the same recipe from its newest whole checkpoint, and returns
    the results of one that is finished. Raises `FinepruneError` before anything is written
    where the recipe or the data cannot work, and where `out` holds something else.

    Under torchrun or `accelerate launch` all processes call it, with a folder that all of them see. The
    batch of the recipe is that of all together; the first writes.

    Ctrl-C during the training saves a checkpoint and raises KeyboardInterrupt; SIGTERM likewise, and then
    SystemExit with the code `stopping.PREEMPTED`.
    """
    require("recipes", "a recipe")
    out = Path(out)
    first = this_process().is_main_process
    agreement.agree(recipe.to_dict() | {"the run's folder": str(out)}, "run")
    share_of(recipe.training.batch_size, "training.batch_size")
    with contextlib.ExitStack() as held:
        with agreement.together("run"):
            finished = claim(out, recipe, resume)
            if finished is None and first:
                held.enter_context(locked(out))
                if claim(out, recipe, resume) is not None:
                    raise FinepruneError(f"{out}: another process has just ended that run; call it again")
        if finished is not None:
            if first:
                tidy_later(out)
            return finished
        held.enter_context(quiet())
        return _run(recipe, out, resume, progress, held.enter_context(StopsAtSignals()))


def _run(recipe: Recipe, out: Path, resume: bool, progress: bool, stops: StopsAtSignals) -> dict[str, Any]:
    """The run, in a folder that nobody else writes to."""
    first = this_process().is_main_process
    data = recipe.task.load()
    set_seed(recipe.training.seed)
    model, tokenizer = build_model(recipe.model.name, data, recipe.model.layers)
    _check_length(recipe, model)
    job = _Job(recipe, data, data.evaluation(tokenizer, recipe.training.max_length), tokenizer)
    trainer = _trainer(job, model, out / CHECKPOINTS, progress)
    with agreement.together("resume"):
        checkpoint = resumable(out / CHECKPOINTS) if resume else None
    agreement.agree({"the newest checkpoint": str(checkpoint)}, "resume")
    with agreement.together("run"), sealing.writing(out, out / CHECKPOINTS):
        if first:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "recipe.yaml", recipe.to_yaml())
            trainer.add_callback(_MetricsFile(out / "metrics.jsonl"))
    trainer.add_callback(stops)
    recorder = Recorder(trainer.pruner) if first and trainer.pruner is not None else None
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    stops.leave(out / CHECKPOINTS, trainer.state.global_step, first)
    seconds = clock.seconds
    if recorder is not None:
        try:
            recorder.take().save(out)
        except Exception as error:  # of memory, of the disk: pictures are no reason to lose a run
            _log.warning("no weights.npz: %s", one_line(error))
    return _finish(job, trainer, out, seconds, checkpoint)


def evaluate_run(
    folder: str | Path, validation: str | None = None, model_folder: str | Path | None = None
) -> dict[str, float]:
    """Score the model of a finished run, or another (its compact form), on the recipe's data or other."""
    require("recipes", "evaluate")
    folder = Path(folder)
    recipe = Recipe.load(folder / "recipe.yaml")
    place = folder if model_folder is None else Path(model_folder)
    model, tokenizer, _ = open_model(place, need_tokenizer=True)
    task = recipe.task if validation is None else recipe.task.with_validation(validation)
    data = data_for(model, task)
    with quiet():
        job = _Job(recipe, data, data.evaluation(tokenizer, recipe.training.max_length), tokenizer)
        return _scores(_trainer(job, model, folder, progress=False), job.evaluation.more)


def _trainer(job: _Job, model: Any, folder: Path, progress: bool) -> PruningTrainer:
    recipe, data, evaluation, tokenizer = job
    training = recipe.training
    train = data.train_rows(tokenizer, training.max_length)
    rows = 0 if train is None else len(train)
    count = this_process().num_processes
    per_step = training.batch_size * training.accumulation
    steps = training.steps or max(1, round(training.epochs * rows / per_step))  # type: ignore[operator]
    in_steps = isinstance(training.warmup, int)
    if in_steps and train is not None and training.warmup >= steps:
        raise FinepruneError(f"training.warmup={training.warmup}: the run has {steps} steps; give fewer")
    every = training.evaluate_every or max(1, steps // 10)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size // count,
        per_device_eval_batch_size=max(1, 64 // count),
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=training.warmup if in_steps else round(training.warmup * steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),  # or bf16 is refused
        seed=training.seed,
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=training.keep_best,
        metric_for_best_model=data.metric,
        greater_is_better=True,
        logging_steps=max(1, min(every // 5, steps // _LINES)),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=not progress,
        dataloader_pin_memory=False,
    )
    trainer = PruningTrainer(
        model=model,
        args=arguments,
        pruning=recipe.pruning if train is not None else None,
        **({} if train is None else _teaching(recipe, folder.parent)),
        data_collator=data.collator(tokenizer),
        train_dataset=train,
        eval_dataset=evaluation.rows,
        compute_metrics=evaluation.compute_metrics,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.add_callback(_Bar)
    return trainer


def _teaching(recipe: Recipe, out: Path) -> dict[str, Any]:
    """What the trainer needs to know of the teacher."""
    section = recipe.distillation
    if section is None:
        return {}
    own = str(out / TEACHER_LOGITS) if section.cache else None
    folder = section.cache if isinstance(section.cache, str) else own
    return {"teacher": section.teacher, "distillation": section.loss, "teacher_logits": folder}


def _scores(trainer: PruningTrainer, more: dict[str, Any]) -> dict[str, float]:
    """The metrics of the validation data, as fractions, and the loss; then those of further sets."""
    timing = (
        "runtime",
        "samples_per_second",
        "steps_per_second",
        "jit_compilation_time",
        "model_preparation_time",
    )
    metrics = dict(trainer.evaluate())
    for name, rows in more.items():
        metrics |= trainer.evaluate(rows, metric_key_prefix=f"eval_{name}")
    names = {key: key.removeprefix("eval_") for key in metrics if key.startswith("eval_")}
    scores = {name: float(metrics[key]) for key, name in names.items() if not name.endswith(timing)}
    endless = [name for name, score in scores.items() if not math.isfinite(score)]
    if endless:  # as a loss may be; JSON has no word for it
        _log.warning("left out, since nan or infinite: %s", ", ".join(endless))
    return {name: score for name, score in scores.items() if name not in endless}


def _finish(
    job: _Job, trainer: PruningTrainer, out: Path, seconds: float, checkpoint: Path | None
) -> dict[str, Any]:
    """Finalize, score what will be loaded, and write the model, then the results."""
    recipe, data, evaluation, tokenizer = job
    model = trainer.model
    if trainer.pruner is not None:
        finalize(model)
        trainer.pruner = None
    left = summary(model)
    scores = _scores(trainer, evaluation.more)
    results = {
        "metric": data.metric,
        "score": scores[data.metric],
        "scores": scores,
        "density": left.density,
        "kept": left.kept,
        "total": left.total,
        "parameters": left.parameters,
        "packed_bytes": packing.packed_bytes(model),
        "dense_bytes": packing.bytes_of(model.state_dict()),
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "resumed_from_step": 0 if checkpoint is None else int(checkpoint.name.split("-")[-1]),
        "examples": data.sizes(),
        "recipe": recipe.to_dict(),
        "environment": _environment(),
    }
    with agreement.together("run"), sealing.writing(out, out / CHECKPOINTS):
        if trainer.is_world_process_zero():
            beside = out / ".model"
            shutil.rmtree(beside, ignore_errors=True)
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            replace_folder(beside, out / "model")
            write_json(out / "results.json", results)
            tidy(out)
    trainer.accelerator.wait_for_everyone()
    return results


def _environment() -> dict[str, Any]:
    return {
        "fineprune": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processes": this_process().num_processes,
    }


def _check_length(recipe: Recipe, model: Any) -> None:
    limit = longest_input(model)
    if limit is not None and recipe.training.max_length > limit:
        raise FinepruneError(
            f"training.max_length={recipe.training.max_length}: "
            f"{recipe.model.name} takes at most {limit} tokens"
        )


class _Bar(ProgressCallback):  # type: ignore[misc]
    """The Trainer's progress bar over steps, without a line for each log and bars for evaluations."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            shown = {key: f"{logs[key]:.3g}" for key in ("loss", "density") if key in logs}
            self.training_bar.set_postfix(shown)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: evaluations are short."""


class _MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Every log as a line of JSON; on resume, the lines after the checkpoint are written anew."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = self._path.with_name(CHECKPOINTS)
        with sealing.writing(self._path, folder), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(state.log_history[-1]) + "\n")


class _Clock(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Seconds of training, with those before the checkpoint that a run continued from, which has them."""

    def __init__(self) -> None:
        self._begin, self._before = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and type(self).__name__ in state.stateful_callbacks:
            self._before = state.stateful_callbacks[type(self).__name__]["attributes"]["seconds"]

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"seconds": self.seconds}}
