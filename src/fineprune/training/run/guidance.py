"""Say before a run whether its plan can work, and after it what it kept and what may help next."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fineprune.config import PruningConfig
from fineprune.pruning.schedule import Schedule
from fineprune.structure import parts_of
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.score_table import score_lines

if TYPE_CHECKING:
    from torch import nn

_LEAST_TRAVEL = 0.1
"""Least sum of the learning rates at the final density, over the root mean square of the weights.

Adam moves a weight by at most about that sum. Measured, with the share of the dense score that was kept:

    MiniLM, rms 0.0614, 400 steps, 2e-4, cool-down 0.3: 0.07; MNLI 86 % at a density of 10 %, 75 % at 3 %
    its first three layers, rms 0.0638, 600 steps, 2e-4, 0.3: 0.09; SST-2 95 %, 93 %
    MiniLM, 600 steps, 2e-4, 0.3: 0.10; SQuAD 69 %, 35 %
    MiniLM, 1,500 steps, 2e-4, 0.3: 0.25; MNLI 94 % at 3 %
    MiniLM, 400 steps, 1e-3, 0.5: 0.86; MNLI 98 % at 10 %, 89 % at 3 %
    all-mpnet-base-v2, rms 0.0635, 600 steps, 1e-4, 0.5: 0.12; SST-2 92 % at 10 %
    the same with 3e-4: 0.37; SST-2 89 %, so above `usual_rates` a higher rate is no remedy

The cool-down of the last two is not on record, and taken to be 0.5.
"""

_LOW_DENSITY = 0.15
"""Highest density for which `_LEAST_TRAVEL` counts: an earlier demo kept 94 to 97 % at 25 % with 0.02."""

_HEAD_STEPS = 400
"""Steps that a new head takes to learn: dense MiniLM has 62.9 on MNLI after 400, and 66.7 after 1,500."""

_SHORT = 1500
"""Steps below which more are known to help: from 400 to 1,500, three of four methods rose on MNLI at 3 %."""

_MINUTES = 60
"""Seconds from which it matters how long a run takes."""

_GOOD = 0.98
"""Share of the dense score above which there is nothing to advise."""


class RunPlan(NamedTuple):
    """The numbers of a run that decide whether its plan can work."""

    steps: int
    warmup: int
    """Steps over which the learning rates rise."""

    prune_from: int | None
    """The step at which pruning begins; None where nothing is pruned."""

    density: float | None
    """The density to reach; None where nothing is pruned, a fixed lambda decides, or parts have their own."""

    at_final: int
    """Steps at the final density."""

    width: int | None
    """The size of the hidden states; None where the config does not say."""

    new_head: bool
    travel: float
    """Sum of the learning rates over the run, as a multiple of the root mean square of the weights."""

    final_travel: float
    """The same over the steps at the final density."""

    @property
    def prunes_randomly(self) -> bool:
        """Whether pruning begins before a new head has learned."""
        return self.new_head and self.prune_from is not None and self.prune_from < _HEAD_STEPS

    @property
    def moves_little(self) -> bool:
        """Whether the remaining weights of a model of low density can hardly move any more."""
        return self.density is not None and self.density <= _LOW_DENSITY and self.final_travel < _LEAST_TRAVEL


def plan_of(recipe: Recipe, model: Any, steps: int, new_head: bool) -> RunPlan:
    """Return the plan of a run.

    Args:
        recipe: its recipe, of one stage, with a learning rate.
        model: the model, prepared or not, before its first step.
        steps: its optimizer steps.
        new_head: whether the head of the model is random.
    """
    width = getattr(model.config, "hidden_size", None)
    known = width if isinstance(width, int) else None
    return plan_without_model(recipe, steps, new_head, known, _size_of_weights(model))


def schedule_of(recipe: Recipe, steps: int) -> Schedule:
    """Return the schedule of the density of a run of one stage; without pruning, the one of its rates."""
    pruning = recipe.pruning
    if pruning is None:
        return Schedule(steps, 0, round(0.3 * steps))  # the steps over which "hold" falls
    if pruning.traits.holds_zeros:
        return Schedule(steps, 0, steps)
    return Schedule.plan(steps, pruning.warmup, pruning.cooldown)


def plan_without_model(
    recipe: Recipe, steps: int, new_head: bool, width: int | None, size: float = math.nan
) -> RunPlan:
    """Return the plan of a run whose model is not at hand.

    Args:
        recipe: its recipe, of one stage, with a learning rate.
        steps: its optimizer steps.
        new_head: whether the head of the model is random.
        width: the size of the hidden states, where it is known.
        size: the root mean square of the weights to prune. nan: unknown, so nothing is said of its change.
    """
    training, pruning = recipe.training, recipe.pruning
    warmup = training.warmup if isinstance(training.warmup, int) else round(training.warmup * steps)
    prunes = pruning is not None and not pruning.traits.holds_zeros
    schedule = schedule_of(recipe, steps)
    plan, peak = training.rates.plan, training.learning_rate or 0.0
    rates = [peak * plan.factor(step, steps, warmup, schedule.cooldown) for step in range(steps)]
    return RunPlan(
        steps=steps,
        warmup=warmup,
        prune_from=schedule.warmup if prunes else None,
        density=_planned_density(pruning) if prunes else None,
        at_final=schedule.cooldown,
        width=width,
        new_head=new_head,
        travel=sum(rates) / size,
        final_travel=sum(rates[steps - schedule.cooldown :]) / size,
    )


def before(recipe: Recipe, plan: RunPlan) -> list[str]:
    """Return a line for each part of a plan that cannot work: the setting, its value, and what to do."""
    checks = (_wrong_rate, _long_warmup, _random_head, _stuck)
    return [text for check in checks if (text := check(recipe, plan)) is not None]


def in_section(section: str, text: str) -> str:
    """Return a line that names settings of `training`, with the section that these stand in for the user."""
    return re.sub(r"\btraining\.(?=\w)", f"{section}.", text)


def untaught(earlier: Mapping[str, Any] | None) -> str | None:
    """Return a warning if the stage before gave every example the same answer."""
    if earlier is None or not earlier.get("constant"):
        return None
    return (
        "the model that this stage begins with gives every validation example the same answer: what follows "
        "learns from one that learned nothing, and a share of its score means nothing"
    )


def quicker(precision: str, levels: Iterable[str], seconds: float) -> list[str]:
    """Return a line for a long run in float32 on a processor that multiplies bfloat16, and without a GPU.

    Args:
        precision: `training.precision`.
        levels: the engine's levels here.
        seconds: the time that the run took.
    """
    import torch

    if precision != "float32" or seconds < _MINUTES or not {"avx512_bf16", "neon_i8mm"} & set(levels):
        return []
    if torch.accelerator.is_available():
        return []
    return ["this processor multiplies bfloat16: training.precision=bfloat16 takes two thirds of the time"]


def after(results: Mapping[str, Any]) -> list[str]:
    """Return lines for the end of a run: the share of the dense score that it kept, and what may help.

    Without a pruned model that learned something, and a score to compare it with, there are none.

    Args:
        results: the content of results.json.
    """
    recipe, score = results["recipe"], results["score"]
    if recipe.get("pruning") is None or results.get("constant"):
        return []
    dense = results.get("dense") or {}
    whose, reference = "the dense model's", dense.get("score")
    if reference is None:
        whose, reference = "its teacher's", results.get("teacher_score")
    elif "share" in dense and dense["share"] is None and score > 0:
        return []  # the dense model is no better than chance, or learned nothing
    if reference is None or reference <= 0:
        return []
    share = score / reference
    kept = f"{share:.1%} of" if score > 0 else "no better than chance, against"
    lines = [f"{kept} {whose} {results['metric']} of {reference:.2%}", *score_lines(results)]
    if share < _GOOD and (advice := _advice(results)):
        lines.append(f"what may help next: {'; '.join(advice[:2])}")
    return lines


def _planned_density(pruning: PruningConfig | None) -> float | None:
    if pruning is None or not pruning.controlled:
        return None
    own = any(part.density is not None for part in parts_of(pruning.structure).values())
    return None if own else pruning.density


def usual_rates(width: int | None) -> tuple[float, float] | None:
    """Return the lowest and the highest learning rate that models of a hidden size are known to take.

    Powers of the size run through MiniLM (384: 1e-4 to 1e-3) and BERT-base and MPNet-base (768: the paper's
    3e-5 to 1e-4). Models that are much wider or narrower are not known: None.
    """
    if width is None or not 256 <= width <= 1024:
        return None
    doublings = math.log2(width / 384)
    return 1e-4 * 0.3**doublings, 1e-3 * 0.1**doublings


def _wrong_rate(recipe: Recipe, plan: RunPlan) -> str | None:
    """Warn of a learning rate that is ten times off the middle of the usual ones."""
    usual, rate = usual_rates(plan.width), recipe.training.learning_rate or 0.0
    if usual is None or rate == 0:  # of a run that is to train nothing
        return None
    middle = math.sqrt(usual[0] * usual[1])
    low = rate <= middle / 10 and plan.travel < 1  # in a long run a low rate is enough
    if not low and rate < 10 * middle:
        return None
    does = f"{plan.steps:,} steps of it hardly move the weights" if low else "the loss may diverge"
    return (
        f"training.learning_rate={_shown(rate)}: models of hidden size {plan.width} take about "
        f"{_shown(usual[0])} to {_shown(usual[1])}, and {does}; give a {'higher' if low else 'lower'} one"
    )


def _long_warmup(recipe: Recipe, plan: RunPlan) -> str | None:
    """Warn of learning rates that rise for most of the run; `Schedule` and the trainer refuse more."""
    if plan.warmup <= plan.steps / 2:
        return None
    return (
        f"training.warmup={recipe.training.warmup!r}: the learning rates rise over {plan.warmup:,} of the "
        f"{plan.steps:,} steps, and fewer than half are left to fall; give a smaller share, such as 0.1"
    )


def _random_head(recipe: Recipe, plan: RunPlan) -> str | None:
    """Warn of scores and masks that are chosen while the head is still random."""
    if recipe.pruning is None or not plan.prunes_randomly:
        return None
    return (
        f"pruning.warmup={recipe.pruning.warmup!r}: the model's head is new, and still random when pruning "
        f"begins at step {plan.prune_from:,}; fine-tune densely first: a section dense (dense={{}}), "
        "or model.name=the folder of a run with pruning=null"
    )


def _stuck(recipe: Recipe, plan: RunPlan) -> str | None:
    """Warn of learning rates so small that what remains cannot make up for what is pruned."""
    if recipe.pruning is None or not plan.moves_little:
        return None
    rate, usual = recipe.training.learning_rate or 0.0, usual_rates(plan.width)
    remedies = ["more training.steps"]
    if plan.at_final < plan.steps / 2:
        remedies.append("a larger pruning.cooldown")
    if usual is not None and rate < usual[1]:
        remedies.append(f"a rate of up to {_shown(usual[1])}")
    return (
        f"training.learning_rate={_shown(rate)} over {plan.at_final:,} steps at the final density "
        f"(pruning.cooldown={recipe.pruning.cooldown!r}): the remaining weights can move by about "
        f"{plan.final_travel:.0%} of their size, too little to make up for those that are pruned; "
        f"give {' or '.join(remedies)}"
    )


def _advice(results: Mapping[str, Any]) -> list[str]:
    """Return what may raise the score of a pruned model, what helped most in measurements first."""
    recipe, plan = results["recipe"], _recorded(results)
    advice = []
    if plan is not None and plan.prunes_randomly:
        advice.append("a dense stage (dense={})")
    if plan is not None and plan.moves_little:
        usual, rate = usual_rates(plan.width), recipe["training"]["learning_rate"]
        if usual is not None and rate < usual[1]:
            advice.append(f"a higher training.learning_rate (here {_shown(rate)})")
        if plan.at_final < plan.steps / 2:
            advice.append(f"a larger pruning.cooldown (here {recipe['pruning']['cooldown']!r})")
    if recipe.get("distillation") is None:
        teacher = "{}" if recipe.get("dense") else "{teacher: DENSE RUN}"
        advice.append(f"a teacher (distillation={teacher})")
    # Those of one density: of several, results.json has the last one's. A refinement has steps of its own.
    if (results.get("pruned") or results)["steps"] < _SHORT:
        advice.append(f"more training.steps (here {recipe['training']['steps'] or results['steps']:,})")
    if results["density"] < 0.1 and (plan is None or plan.density is not None):
        advice.append(f"a higher pruning.density (here {results['density']:.1%})")
    return advice


def _recorded(results: Mapping[str, Any]) -> RunPlan | None:
    """Return the plan in the results; None in those of other versions."""
    values = results.get("plan") or {}
    return RunPlan(**values) if set(values) == set(RunPlan._fields) else None


def _size_of_weights(model: "nn.Module") -> float:
    """Return the root mean square of the weights to prune, without zeros that an earlier pruning made."""
    from fineprune.pruning.finalizing import masked_modules  # recipes are checked without torch
    from fineprune.pruning.targets import find_targets

    names = [f"{name}.parametrizations.weight.original" for name, *_ in masked_modules(model)]
    names = names or [f"{name}.weight" for name in find_targets(model)]
    weights = [model.get_parameter(name).detach() for name in names]
    squares = sum(float(weight.float().square().sum()) for weight in weights)
    return math.sqrt(squares / max(1, sum(int(weight.count_nonzero()) for weight in weights))) or math.inf


def _shown(rate: float) -> str:
    """Return a rate as people write it, such as 2e-4."""
    if rate >= 0.1 or rate == 0:
        return f"{rate:g}"
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
