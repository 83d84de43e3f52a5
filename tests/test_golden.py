"""A short training per method, step by step, against what it gave when it was last looked at.

`python tests/test_golden.py --write` writes the trajectories of today: do it when a change of
numbers is meant, and say why in the commit.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from support import NO_DROPOUT, tiny_bert

from fineprune import Distillation, PruningConfig, prepare
from fineprune.config import METHODS
from fineprune.pruning.targets import find_targets
from fineprune.training.distillation.losses import distillation_loss

GOLDEN = Path(__file__).parent / "golden"
FILES = {"keep_zeros": "frozen"}  # named when the method had its older name
STEPS = 12
WINDOWS = {"mask_interval": 2, "options": {"window": 2}}  # of the default, not one would end in the warm-up
SETTINGS = {
    "platon": WINDOWS,
    "pins": WINDOWS,
    "admm": {"options": {"interval": 2}},
    # By Adam all scores leave 0 by steps of one size, and rounding ranks them, which differs by processor.
    "smp": {"score_optimizer": "sgd"},
}
HEADS = {"attention": "head", "feed_forward": "neuron"}
STRUCTURES = {  # by the name of the file
    "movement_blocks": ("movement", (4, 1)),
    "soft_movement_heads": ("soft_movement", HEADS),
    "l0_heads": ("l0", HEADS),
    "soft_movement_levels": ("soft_movement", [HEADS | {"density": 0.5}, "element"]),
    "grain_dims": ("grain", {"attention": ["query_dim", "value_dim"], "feed_forward": "neuron"}),
}


def trajectory(method, distillation=None, structure="element"):
    """Task loss, penalty and density of each of the steps; with `distillation`, its loss."""
    model = tiny_bert(vocab_size=50, max_position_embeddings=16, **NO_DROPOUT)
    generator = torch.Generator().manual_seed(1)
    # Weights as large as trained ones: the 0.02 of a fresh model leaves gradients of nothing.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tokens = torch.randint(0, 50, (8, 10), generator=generator)
    labels = torch.randint(0, 2, (8,), generator=generator)
    teacher = torch.randn(8, 2, generator=generator)

    if METHODS[method].holds_zeros:
        with torch.no_grad():
            for module in find_targets(model).values():
                module.weight[torch.rand(module.weight.shape, generator=generator) < 0.7] = 0
    config = PruningConfig(
        method, density=0.3, structure=structure, warmup=2, cooldown=3, **SETTINGS.get(method, {})
    )
    pruner = prepare(model, config, STEPS)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-3)
    if pruner.measures:
        halves = list(zip(tokens.split(4), labels.split(4), strict=True))
        pruner.measure_on(lambda: (model(rows, labels=of).loss for rows, of in halves))
    model.train()
    torch.manual_seed(2)  # l0's gates
    steps = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        outputs = model(tokens, labels=labels)
        loss, extra = outputs.loss, {}
        if distillation is not None:
            distilled = distillation_loss("texts", outputs.logits, teacher, distillation.temperature)
            extra = {"distillation": distilled.item()}
            loss = distillation.alpha * distilled + (1 - distillation.alpha) * loss
        penalty = pruner.penalty()
        (loss + penalty).backward()
        optimizer.step()
        pruner.step()
        steps.append({"loss": loss.item(), "penalty": penalty.item(), "density": pruner.density} | extra)
    return steps


@pytest.mark.parametrize("method", METHODS)
def test_trajectory(method):
    expected = json.loads((GOLDEN / f"{FILES.get(method, method)}.json").read_text(encoding="utf-8"))
    got = trajectory(method)
    assert len(got) == len(expected) == STEPS
    for step, (ours, theirs) in enumerate(zip(got, expected, strict=True), start=1):
        assert ours == pytest.approx(theirs, rel=1e-4), f"step {step}"


@pytest.mark.parametrize("method", METHODS)
def test_what_the_golden_runs_cover(method):
    steps = json.loads((GOLDEN / f"{FILES.get(method, method)}.json").read_text(encoding="utf-8"))
    if METHODS[method].holds_zeros:
        assert len({step["density"] for step in steps}) == 1
        assert steps[0]["density"] == pytest.approx(0.3, abs=0.02)
    else:
        assert [step["density"] for step in steps[:2]] == [1.0, 1.0]
        assert steps[-1]["density"] == pytest.approx(0.3, abs=0.001)
    assert len({step["loss"] for step in steps}) == STEPS
    penalized = METHODS[method].penalty_decides or method == "smp"
    assert (max(step["penalty"] for step in steps) > 0) == penalized


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_trajectory_of_larger_units(name):
    method, structure = STRUCTURES[name]
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    for step, (ours, theirs) in enumerate(
        zip(trajectory(method, structure=structure), expected, strict=True), start=1
    ):
        assert ours == pytest.approx(theirs, rel=1e-4), f"step {step}"
    assert len({step["loss"] for step in expected}) == STEPS
    if isinstance(structure, list):
        assert expected[-1]["density"] == round(0.3 * 4096) / 4096  # the elements make it exact
    # A head is 512 of 4,096 weights, and a matrix of 256 has 64 blocks.
    assert expected[-1]["density"] == pytest.approx(0.3, abs=256 / 4096 if structure == HEADS else 0.5 / 64)


def test_a_trajectory_with_a_teacher():
    expected = json.loads((GOLDEN / "movement_distilled.json").read_text(encoding="utf-8"))
    got = trajectory("movement", Distillation())
    for step, (ours, theirs) in enumerate(zip(got, expected, strict=True), start=1):
        assert ours == pytest.approx(theirs, rel=1e-4), f"step {step}"
    assert got[-1]["distillation"] < got[0]["distillation"]


def write():
    """Write the trajectories of every method."""
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    runs = {method: trajectory(method) for method in METHODS}
    runs["movement_distilled"] = trajectory("movement", Distillation())
    for name, (method, structure) in STRUCTURES.items():
        runs[name] = trajectory(method, structure=structure)
    for name, steps in runs.items():
        (GOLDEN / f"{FILES.get(name, name)}.json").write_text(
            json.dumps(steps, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_golden.py --write")
    write()
