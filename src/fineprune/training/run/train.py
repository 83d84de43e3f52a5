"""Run one recipe: from a YAML file to a folder with a pruned model and its score.

The folder holds `recipe.yaml` (with its defaults), `dense/` or `pruned/` (the run of the stage before),
`metrics.jsonl` (a line per log), `checkpoints/` and `teacher_logits/` (while the run is under way),
`weights.npz` (of a pruning run: the data of figures), `model/` (an ordinary model, zeros in place) and,
written last, `results.json`. Every file there is complete, so a run that was killed can be continued.
"""

import contextlib
import gc
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from fineprune._extras import require
from fineprune._files import write_text
from fineprune._messages import one_line
from fineprune._transformers_output import quiet
from fineprune._warnings import collected
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement
from fineprune.pruning.low_rank import factorize
from fineprune.structure import shrinks
from fineprune.tasks.model_config import longest_input
from fineprune.tasks.modeling import build_model, head_is_new
from fineprune.training.host import sealing
from fineprune.training.host.processes import share_of, this_process
from fineprune.training.host.stopping import AGAIN, StopsAtSignals
from fineprune.training.host.trainer import PruningTrainer
from fineprune.training.run.callbacks import Clock, MetricsFile
from fineprune.training.run.data_files import ORIGIN, place_of
from fineprune.training.run.densities import WHOLE
from fineprune.training.run.evaluate import evaluation_of
from fineprune.training.run.filling import fill_zeros
from fineprune.training.run.finishing import Running, finish, warn, width_of
from fineprune.training.run.first_cut import cut
from fineprune.training.run.guidance import before, in_section, plan_of, untaught
from fineprune.training.run.mask_snapshot import Recorder
from fineprune.training.run.recipe import Recipe, not_tuned
from fineprune.training.run.recipe_trainer import Job, make_trainer
from fineprune.training.run.refine import RefineConfig
from fineprune.training.run.run_folder import (
    CHECKPOINTS,
    DENSE,
    claim,
    locked,
    resumable,
    tidy_later,
)
from fineprune.training.run.teacher_score import check_start
from fineprune_runtime.results import MAX_LENGTH

_log = logging.getLogger("fineprune")

_PRUNED = 0.9  # density of a model that was pruned: trained weights are hardly ever 0


def run_recipe(
    recipe: Recipe,
    out: str | Path,
    resume: bool = False,
    progress: bool = True,
    home: Path | None = None,
    section: str = "training",
    again: str = AGAIN,
) -> dict[str, Any]:
    """Train a recipe into the folder `out`, and return the content of `results.json`.

    A recipe with a section `dense` or `refine`, or with several densities, runs in stages, those before the
    last in the folders `dense`, `pruned` or `density-…` in `out`; what can be refused of the last is refused
    before the first. `resume` continues a run of the same recipe, in any stage, from its newest complete
    checkpoint, and returns the results of one that is finished. Raises `FinepruneError` before anything is
    written if the recipe or the data cannot work, or if `out` holds something else.

    `home` is the folder of the run of several densities of which this one is an earlier density: its stages
    are in that folder, and it leaves its model for the next density. `section` is where the settings of this
    training stand in the recipe that it is a stage of; `again` is what goes on with it after a signal, for
    the message.

    Under torchrun or `accelerate launch` all processes call it, with a folder that all of them see. The
    recipe's batch is split over them; the first process writes.

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
        earlier = _run_before(recipe, out, progress, home or out, again)
        named = section if recipe.refine is None else "refine"
        held.enter_context(quiet())
        run = Running(recipe, out, resume, progress, held.enter_context(collected()), earlier, home, named)
        held.enter_context(agreement.connected())  # the last evaluation and the files need the others, too
        return _run(run, held.enter_context(StopsAtSignals(again)))


def _run_before(recipe: Recipe, out: Path, progress: bool, home: Path, again: str) -> dict[str, Any] | None:
    """Run the stage before the last into its folder in `home`, or go on with it; return its results.

    None for a run of one stage. The run of the last stage is made before, from the model that the first
    begins with, and thrown away: a setting that cannot work must not cost a training.
    """
    if recipe.stage_before is None:
        return None
    name, stage = recipe.stage_before
    first, folder = this_process().is_main_process, home / name
    if not (folder / "results.json").is_file():
        last = recipe.last_stage(recipe.model.name)
        own = recipe.distillation is not None and recipe.distillation.teacher is not None
        last = replace(last, model=recipe.model, distillation=last.distillation if own else None)
        if recipe.refine is not None:
            last = replace(last, pruning=None)  # there are no zeros yet that it could keep
        with quiet():
            _, trainer = begin(last, out, progress=False)
        if recipe.is_tuned and head_is_new(trainer.model):
            raise not_tuned(recipe.model.name)
        del trainer  # or its model is there while the stage trains
    with agreement.together("run"), sealing.writing(out, out / CHECKPOINTS):
        if first:
            write_text(out / "recipe.yaml", recipe.to_yaml())
    if first and progress:
        as_it_is = recipe.is_tuned and name == DENSE
        aim = f": scores {recipe.model.name}, and leaves it as it is" if as_it_is else ""
        print(f"{name} stage, into {folder}{aim}", file=sys.stderr, flush=True)
    try:
        inside = home if recipe.earlier_densities else None
        section = name if name == DENSE else "training"
        results = run_recipe(
            stage, folder, resume=True, progress=progress, home=inside, section=section, again=again
        )
    except FinepruneError as error:
        raise FinepruneError(f"{name} stage: {error}") from error
    if recipe.is_tuned and name == DENSE and results["density"] < _PRUNED:
        raise FinepruneError(
            f"dense={recipe.model.name}: {results['density']:.1%} of its weights are there: it was pruned; "
            f"name the dense model, or prune this one further: model.name={recipe.model.name} dense=null "
            "distillation.teacher=THE DENSE MODEL"
        )
    _check_whole(recipe, folder)
    if first and progress:
        score = f"{results['metric']} {results['score']:.2%}"
        print(f"the {name} model has {score}; the next stage goes on from it", file=sys.stderr, flush=True)
    return results


def _check_whole(recipe: Recipe, folder: Path) -> None:
    """Raise `FinepruneError` where the model that the last density begins with is gone from an earlier one's
    folder, as after a run that was finished once.
    """
    if recipe.refine is not None or not recipe.earlier_densities or recipe.pruning is None:
        return
    if shrinks(recipe.pruning.structure) and not (folder / WHOLE).is_dir():
        raise FinepruneError(
            f"{folder}: its model before heads and neurons were removed is gone, and the next density "
            "begins with it; delete its results.json, too, and --resume trains it anew"
        )


def begin(recipe: Recipe, out: Path, progress: bool) -> tuple[Job, PruningTrainer]:
    """Load data and model, and make the trainer, for a recipe of one stage; nothing is trained yet."""
    data = recipe.task.load()
    gc.collect()  # the trainer of a stage or run before is in cycles, which hold its model and optimizer
    set_seed(recipe.training.seed)
    model, tokenizer = build_model(
        recipe.model.name,
        data,
        recipe.model.layers,
        recipe.training.dropout,
        _attention(recipe),
        recipe.model.trust_remote_code,
    )
    if recipe.model.density is not None:
        cut(model, recipe.model.structure, recipe.model.density)
    if recipe.model.low_rank is not None:
        made = factorize(model, recipe.model.low_rank)
        if progress and this_process().is_main_process:
            print(made, file=sys.stderr, flush=True)
    if isinstance(recipe.training, RefineConfig) and recipe.training.fill is not None:
        fill_zeros(model, recipe.training.fill, recipe.training.seed)
    _check_length(recipe, model)
    if recipe.task.kind != "embedding":  # whose length is in the settings of sentence-transformers
        setattr(model.config, MAX_LENGTH, recipe.training.max_length)
    chosen = recipe.with_chosen(data.sizes()["train"], width_of(model))
    job = Job(chosen, data, evaluation_of(recipe, data, tokenizer, progress), tokenizer)
    return job, make_trainer(job, model, out / CHECKPOINTS, progress)


def _run(run: Running, stops: StopsAtSignals) -> dict[str, Any]:
    """Run the recipe in a folder that no other process writes to, from its dense stage on if it has one."""
    out, resume = run.out, run.resume
    first = this_process().is_main_process
    whole = run.recipe
    before_last = whole.stage_before
    stage = whole if before_last is None else whole.last_stage(str(run.stages / before_last[0]))
    origin = place_of(stage)
    job, trainer = begin(stage, out, run.progress)
    recipe, data = job.recipe, job.data
    with agreement.together("resume"):
        checkpoint = resumable(out / CHECKPOINTS) if resume else None
    agreement.agree({"the newest checkpoint": str(checkpoint)}, "resume")
    with agreement.together("run"), sealing.writing(out, out / CHECKPOINTS):
        if first:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "recipe.yaml", whole.to_yaml())
            trainer.add_callback(MetricsFile(out / "metrics.jsonl"))
    trainer.add_callback(stops)
    recorder = Recorder(trainer.pruner) if first and trainer.pruner is not None else None
    clock = Clock()
    trainer.add_callback(clock)
    plan = plan_of(recipe, trainer.model, trainer.args.max_steps, head_is_new(trainer.model))
    own = [in_section(run.section, warning) for warning in before(recipe, plan)]
    for warning in (*own, check_start(recipe, data), untaught(run.earlier)):
        if warning:
            warn(warning)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    stops.leave(out / CHECKPOINTS, trainer.state.global_step, first)
    seconds = clock.seconds
    if recorder is not None:
        try:
            recorder.take().save(out)
        except Exception as error:  # memory or disk: missing figures are no reason to lose a run
            _log.warning("no weights.npz: %s", one_line(error))
    trained = {
        ORIGIN: origin,
        "plan": plan._asdict(),
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "resumed_from_step": 0 if checkpoint is None else int(checkpoint.name.split("-")[-1]),
    }
    return finish(job, trainer, run, trained)


def _attention(recipe: Recipe) -> str | None:
    """Return the implementation of attention, where the recipe or the machine asks for one."""
    slow = recipe.training.dropout == 0 and recipe.training.precision == "bfloat16"
    on_cpu = not torch.accelerator.is_available()
    return recipe.model.attention or ("eager" if slow and on_cpu else None)


def _check_length(recipe: Recipe, model: Any) -> None:
    limit = longest_input(model)
    if limit is not None and recipe.training.max_length > limit:
        raise FinepruneError(
            f"training.max_length={recipe.training.max_length}: "
            f"{recipe.model.name} takes at most {limit} tokens"
        )
