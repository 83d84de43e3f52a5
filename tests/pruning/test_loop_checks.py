"""Mistakes of a hand-written loop are reported once, and a right loop hears nothing."""

import copy
import io
import warnings

import pytest
import torch
from support import NO_DROPOUT, PRUNING, tiny_bert

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneWarning
from fineprune.pruning.finalizing import fold
from fineprune.pruning.loop_checks import UPDATES
from fineprune.pruning.preparing import prepare

TOTAL = 100
IDS = torch.randint(1, 30, (4, 6), generator=torch.Generator().manual_seed(0))
LR = 1e-3


def before(model):
    """An optimizer that is built before `prepare`."""
    return torch.optim.AdamW(model.parameters(), lr=LR)


def right(pruner):
    return pruner.optimizer(torch.optim.AdamW, lr=LR)


def from_parameters(pruner):
    """The optimizer that everybody writes."""
    return torch.optim.AdamW(pruner.model.parameters(), lr=LR)


def attached(pruner):
    optimizer = from_parameters(pruner)
    pruner.attach(optimizer)
    return optimizer


def in_two(pruner):
    """As transformers' Trainer does it: with and without decay; the rates are a scheduler's, 0 at first."""
    trained = [entry for entry in pruner.model.parameters() if entry.requires_grad]
    groups = [{"params": [p for p in trained if (p.ndim > 1) == decay]} for decay in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)
    return optimizer


def one_rate(pruner):
    """A scheduler that sets one rate for all groups."""
    optimizer = right(pruner)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=TOTAL)
    return optimizer


def by_hand(pruner):
    """Scores apart, at a rate of the user's choice."""
    scores = {id(target.masked.scores): target.masked.scores for target in pruner.targets}
    rest = [entry for entry in pruner.model.parameters() if entry.requires_grad and id(entry) not in scores]
    return torch.optim.AdamW([{"params": rest}, {"params": list(scores.values()), "lr": 0.01}], lr=LR)


def loop(
    method="movement", steps=UPDATES + 2, make=right, calls=1, every=1, accumulate=1, penalty=True, **config
):
    """Train as a user would, and return the model and what was warned.

    `pruner.step()` is called `calls` times after each `every`-th step.
    """
    model = tiny_bert(**NO_DROPOUT)
    optimizer = before(model) if make is before else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruner = prepare(model, PruningConfig(method, density=0.25, **config), TOTAL)
        optimizer = make(pruner) if optimizer is None else optimizer
        for step in range(steps):
            for _ in range(accumulate):
                loss = model(input_ids=IDS, labels=IDS[:, 0] % 2).loss
                if penalty:
                    loss = loss + pruner.penalty()
                (loss / accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()
            for _ in range(calls if step % every == 0 else 0):
                pruner.step()
    assert all(entry.category is FinepruneWarning for entry in caught)
    return model, [str(entry.message) for entry in caught]


def go_on(model):
    """Train without a pruner, for longer than what is watched."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2 * UPDATES):
        model(input_ids=IDS, labels=IDS[:, 0] % 2).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("make", [right, attached])
@pytest.mark.parametrize("method", [*PRUNING, "platon"])
def test_a_right_loop_hears_nothing(method, make):
    assert loop(method, accumulate=3, make=make)[1] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"make": from_parameters}, ["rate, 0.001, not at their own, 0.03, so they hardly move"]),
        ({"make": in_two}, ["at the weights' rate, 0.001, not at their own, 0.03"]),
        ({"make": one_rate}, ["stay: give the scheduler a rate for each group"]),
        ({"make": from_parameters, "method": "l0"}, ["not at their own, 0.1"]),
        ({"make": from_parameters, "method": "soft_movement"}, ["from pruner.parameter_groups(lr=...)"]),
        ({"make": from_parameters, "score_optimizer": "sgd"}, ["build it by pruner.optimizer(...), or call"]),
        ({"make": from_parameters, "score_lr": LR}, []),  # that is what was asked for
        ({"make": from_parameters, "method": "magnitude"}, []),  # has no scores
        ({"make": by_hand}, []),
        ({"make": before}, ["the optimizer does not have them"]),
        ({"make": before, "method": "magnitude"}, []),
        ({"calls": 0}, ["pruner.step() was never called"]),
        ({"calls": 0, "method": "magnitude", "make": from_parameters}, ["pruner.step() was never called"]),
        ({"calls": 0, "steps": UPDATES - 1}, []),
        ({"every": 5}, ["pruner.step() was called 4 times: the schedule counts"]),
        ({"calls": 2, "accumulate": 2}, ["pruner.step() was called 38 times: the schedule counts"]),
        ({"steps": 1, "accumulate": 3 * UPDATES}, []),
        ({"method": "soft_movement", "penalty": False}, ["3 optimizer steps without pruner.penalty()"]),
        ({"method": "l0", "penalty": False}, ["without pruner.penalty()"]),
        ({"method": "movement", "penalty": False}, []),
    ],
)  # fmt: skip
def test_mistakes_are_reported_once(settings, said):
    heard = loop(**({"steps": UPDATES + 4} | settings))[1]
    assert len(heard) == len(said)
    assert all(part in text and "\n" not in text for part, text in zip(said, heard, strict=True))


def test_a_prepared_model_whose_pruner_is_dropped():
    model = tiny_bert()
    prepare(model, PruningConfig("magnitude", density=0.25), TOTAL)
    with pytest.warns(FinepruneWarning, match=r"pruner.step\(\) was never called"):
        go_on(model)


def test_frozen_masks_need_no_steps():
    model = fold(loop(steps=5)[0])
    for weight in model.bert.encoder.parameters():
        weight.data[..., ::2] = 0
    prepare(model, PruningConfig("keep_zeros"), TOTAL)
    go_on(model)


def test_what_is_finalized_is_watched_no_longer():
    go_on(fold(loop(steps=2, calls=0)[0]))


def test_copies_and_files_carry_no_watch():
    model, _ = loop(calls=0, steps=2)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    go_on(twin)
