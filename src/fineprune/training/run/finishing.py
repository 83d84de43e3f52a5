"""End a run: finalize, score the model as it will be loaded, and write the model, then the results."""

import logging
import os
import platform
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from fineprune._files import write_json
from fineprune._messages import one_line
from fineprune._version import __version__
from fineprune.checkpoint import packing
from fineprune.pruning.distributed import agreement
from fineprune.pruning.finalizing import finalize
from fineprune.pruning.summary import summary
from fineprune.structure import shrinks
from fineprune.training.host import sealing
from fineprune.training.host.processes import this_process
from fineprune.training.host.trainer import PruningTrainer
from fineprune.training.run.constant_answers import Answers
from fineprune.training.run.densities import WHOLE, family, folder_of
from fineprune.training.run.evaluate import in_float32, scores
from fineprune.training.run.guidance import in_section, usual_rates
from fineprune.training.run.latency import flops_of, shrink_timed
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.recipe_trainer import Job
from fineprune.training.run.refine import of_pruned
from fineprune.training.run.run_folder import CHECKPOINTS, tidy, write_model
from fineprune.training.run.teacher_score import teacher_score, weak_teacher

_log = logging.getLogger("fineprune")


class Running(NamedTuple):
    """A run under way: what was asked for, the warnings so far, the results of the stage before the last."""

    recipe: Recipe
    out: Path
    resume: bool
    progress: bool
    warnings: list[str]
    earlier: dict[str, Any] | None
    home: Path | None
    """The folder of the run of several densities that this is a part of; None: it is no part."""
    section: str
    """Where the settings of the training stand in the recipe that the user gave."""

    @property
    def stages(self) -> Path:
        """The folder that the stages before are in."""
        return self.home or self.out


def finish(job: Job, trainer: PruningTrainer, run: Running, trained: dict[str, Any]) -> dict[str, Any]:
    """Finalize, score the model as it will be loaded, write the model, then the results; return these.

    Args:
        job: The recipe with its data.
        trainer: The trainer, at the end of the training.
        run: The run.
        trained: What the results say about the training itself.
    """
    recipe, data, evaluation, tokenizer = job
    out = run.out
    model = trainer.model
    left = None
    if trainer.pruner is not None:
        left = {name: list(v) if isinstance(v, tuple) else v for name, v in trainer.pruner.left.items()}
        finalize(model)
        trainer.pruner = None
    stats, dense_bytes = summary(model), packing.bytes_of(model.state_dict())
    _leave_whole(run, model, tokenizer)
    with in_float32(trainer):  # the proof would refuse what bfloat16 rounds
        shrunk, latency = shrink_timed(model, recipe.pruning)
    trainer.compute_metrics.answers = None  # those of the finished model count
    measured = scores(trainer, evaluation)
    answers = trainer.compute_metrics.answers
    if answers.constant:
        warn(in_section(run.section, _learned_nothing(recipe, model, answers)))
    results = {
        "metric": data.metric,
        "score": measured[data.metric],
        "scores": measured,
        "scored_in": "float32",
        "teacher_score": _teacher_score(job, measured[data.metric], out),
        "constant": answers.constant,
        "majority": answers.majority,
        "density": stats.density,
        "left": left,
        "shrunk": shrunk,
        "latency": latency,
        "flops": flops_of(model),
        "kept": stats.kept,
        "total": stats.total,
        "parameters": stats.parameters,
        "packed_bytes": packing.packed_bytes(model),
        "dense_bytes": dense_bytes,
        **trained,
        "dense": _of_dense(_dense_of(job) or _dense_before(run), measured[data.metric]),
        "warnings": run.warnings,
        "examples": data.sizes(),
        "recipe": run.recipe.with_chosen(data.sizes()["train"], width_of(model)).to_dict(),
        "environment": _environment(),
    }
    if run.recipe.refine is not None:
        results |= of_pruned(run.earlier or {}, results)
    if run.recipe.earlier_densities and run.recipe.pruning is not None and run.home is None:
        every = (*run.recipe.earlier_densities, run.recipe.pruning.density)
        results["densities"] = family(every, out, results)
    with agreement.together("run"), sealing.writing(out, out / CHECKPOINTS):
        if trainer.is_world_process_zero():
            write_model(model, tokenizer, out / "model")
            write_json(out / "results.json", results)
            tidy(out)
            if run.recipe.earlier_densities:
                shutil.rmtree(run.stages / folder_of(run.recipe.earlier_densities[-1]) / WHOLE, True)
    trainer.accelerator.wait_for_everyone()
    return results


def _teacher_score(job: Job, student: float, out: Path) -> float | None:
    """Return the teacher's score for the results, and warn if it is below the student's; None without one."""
    recipe, metric, known = job.recipe, job.data.metric, job.evaluation.dense
    if known is not None:
        return known[metric]
    try:
        score = teacher_score(recipe, metric, out / CHECKPOINTS)
    except Exception as error:  # a score for comparison is no reason to lose a run
        warn(f"the teacher is not scored: {one_line(error)}")
        return None
    if score is not None and (warning := weak_teacher(score, student, job.data, "now")):
        warn(warning)
    return score


def _leave_whole(run: Running, model: Any, tokenizer: Any) -> None:
    """Write the model of an earlier density before it is made smaller: the next one begins with it."""
    pruning = run.recipe.pruning
    if run.home is None or pruning is None or not shrinks(pruning.structure):
        return
    with agreement.together("run"), sealing.writing(run.out, run.out / CHECKPOINTS):
        if this_process().is_main_process:
            write_model(model, tokenizer, run.out / WHOLE)


def warn(text: str) -> None:
    """Say a warning of the run; of several processes, the first speaks for all."""
    if this_process().is_main_process:
        _log.warning("%s", text)


def _learned_nothing(recipe: Recipe, model: Any, answers: Answers) -> str:
    """Return the warning about a model that answers the same to everything."""
    answer = "" if answers.answer is None else f", {answers.answer!r}"
    rate, usual = recipe.training.learning_rate or 0.0, usual_rates(width_of(model))
    remedies = ["more training.steps"]
    if usual is not None and rate < usual[1]:
        remedies.append(f"a training.learning_rate of up to {usual[1]:.1g}")
    return (
        f"the model gives every validation example the same answer{answer}: it learned nothing; "
        f"{' or '.join(remedies)} may help (the rate here: {rate:g})"
    )


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


def _dense_of(job: Job) -> dict[str, Any] | None:
    """Return the scores of the dense model, where its answers are the labels; else None."""
    scores = job.evaluation.dense
    return scores and {"score": scores[job.data.metric], "scores": scores, "steps": 0, "seconds": 0.0}


def _dense_before(run: Running) -> dict[str, Any] | None:
    """Return the results of the dense stage before the pruning, or what those of an earlier density say."""
    earlier = run.earlier
    return earlier["dense"] if earlier is not None and run.recipe.earlier_densities else earlier


def _of_dense(dense: dict[str, Any] | None, score: float) -> dict[str, Any] | None:
    """Return what the results say about the dense stage, and the share of its score that is kept."""
    if dense is None:
        return None
    share = score / dense["score"] if dense["score"] > 0 and not dense.get("constant") else None
    return {name: dense[name] for name in ("score", "scores", "steps", "seconds")} | {"share": share}


def width_of(model: Any) -> int:
    """Return the size of the model's hidden states; BERT-base's where its config does not say."""
    width = getattr(model.config, "hidden_size", None)
    return width if isinstance(width, int) else 768
