"""Demonstrate pruning without a network: an embedded model, and docstrings of the installed libraries.

The task: does this sentence describe the function of this name? all-MiniLM-L6-v2 is fine-tuned densely;
from there it loses three quarters of its heads and neurons by the recipe of the short runs, with the dense
model as the teacher. Nothing is shipped but code.

Two runs of at most 200 steps take minutes; longer ones keep more (docs/short-runs.md).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fineprune._extras import EXTRAS, require
from fineprune._files import write_json
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.tasks import docstring_pairs
from fineprune.tasks.text.task import ClassificationConfig
from fineprune.training.run.recipe import DistillationConfig, ModelConfig, Recipe
from fineprune.training.run.training_config import TrainingConfig

DENSITY = 0.25
STRUCTURE = {"attention": "head", "feed_forward": "neuron"}
STEPS = 200
_DENSE_SHARE = 0.75  # of the steps; more add nothing to the dense accuracy
VALIDATION = 1000
_BATCH = 24
LENGTH = 32
"""Tokens of a pair at most."""


@dataclass(frozen=True)
class DemoRow:
    """One row of the demo's table. `score` is accuracy; `kept` is its share of the dense score."""

    name: str
    density: float
    score: float
    kept: float
    seconds: float
    folder: Path


def run_demo(out: str | Path, steps: int = STEPS, say: Callable[[str], None] = print) -> list[DemoRow]:
    """Make the data and the two runs in the folder `out`, continuing runs that exist there."""
    require("demo", "the demo", EXTRAS["demo"] + EXTRAS["recipes"])
    from fineprune.training.run.train import run_recipe

    out = Path(out)
    there = os.listdir(out) if os.path.isdir(out) else []
    if os.path.isfile(out) or (there and "demo.json" not in there):
        raise FinepruneError(f"{out}: not empty, and not a demo; name another folder with --out")
    settings = {"steps": steps, "density": DENSITY, "structure": STRUCTURE}
    _data(out, steps, settings, say)
    results: dict[str, dict[str, Any]] = {}
    stages = {
        "dense": "fine-tuning all-MiniLM-L6-v2 densely",
        "pruned": f"pruning heads and neurons of that model to {DENSITY:.0%}, with itself as the teacher",
    }
    lengths = {"dense": round(_DENSE_SHARE * steps), "pruned": steps}
    for name, what in stages.items():
        say(f"{what}: {lengths[name]} steps of {_BATCH} pairs of at most {LENGTH} tokens")
        results[name] = run_recipe(_recipe(out, name, lengths[name]), out / name, resume=True)
    dense = results["dense"]["score"]
    return [
        DemoRow(name, entry["density"], entry["score"], entry["score"] / dense, entry["seconds"], out / name)
        for name, entry in results.items()
    ]


def _data(out: Path, steps: int, settings: dict[str, Any], say: Callable[[str], None]) -> None:
    """Write train.jsonl and validation.jsonl, then demo.json, which marks them as complete."""
    if os.path.isfile(out / "demo.json"):
        say(f"continuing the demo in {out}")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinepruneError(
            f"{out}: cannot be made ({error.strerror}); name another folder with --out"
        ) from error
    say("reading the docstrings of the installed libraries")
    train, validation = docstring_pairs.build(steps * _BATCH, VALIDATION)
    docstring_pairs.write_jsonl(train, out / "train.jsonl")
    docstring_pairs.write_jsonl(validation, out / "validation.jsonl")
    write_json(out / "demo.json", settings)
    example = next(pair for pair in validation if pair.describes)
    other = next(pair for pair in validation if not pair.describes)
    say(f"{len(train):,} + {len(validation):,} pairs, from files of their own each. Two of them:")
    say(f'  "{example.name}"  -  {example.sentence}  ->  describes')
    say(f'  "{other.name}"  -  {other.sentence}  ->  other')


def _recipe(out: Path, name: str, steps: int) -> Recipe:
    dense = str(out / "dense")
    pruned = name == "pruned"
    return Recipe(
        model=ModelConfig(dense if pruned else "minilm"),
        task=ClassificationConfig(
            train=str(out / "train.jsonl"),
            validation=str(out / "validation.jsonl"),
            text=("name", "sentence"),
            labels=("other", "describes"),
        ),
        training=TrainingConfig(
            steps=steps,
            batch_size=_BATCH,
            learning_rate=5e-4 if pruned else 1e-4,
            warmup=0.05 if pruned else 0.1,
            dropout=0 if pruned else None,
            max_length=LENGTH,
            group_by_length=True,
            evaluate_every=steps,
        ),
        pruning=PruningConfig("soft_movement", DENSITY, structure=STRUCTURE, warmup=0.02, cooldown=0.5)
        if pruned
        else None,
        distillation=DistillationConfig(dense) if pruned else None,
    )
