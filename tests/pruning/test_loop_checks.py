"""Mistakes of a loop of one's own are told once, and a right loop hears nothing."""

import copy
import io

import pytest
import torch
from support import PRUNING, tiny_bert

from fineprune.config import PruningConfig
from fineprune.pruning.finalizing import finalize
from fineprune.pruning.loop_checks import UPDATES
from fineprune.pruning.pruner import prepare

TOTAL = 100
IDS = torch.randint(1, 30, (4, 6), generator=torch.Generator().manual_seed(0))


def loop(method="movement", steps=UPDATES + 2, early=False, step=True, accumulate=1):
    """Train as a user would; `early` builds the optimizer before `prepare`."""
    model = tiny_bert()
    before = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = prepare(model, PruningConfig(method, density=0.25), TOTAL)
    optimizer = before if early else torch.optim.AdamW(pruner.parameter_groups(lr=1e-3))
    for _ in range(steps):
        for _ in range(accumulate):
            loss = model(input_ids=IDS, labels=IDS[:, 0] % 2).loss + pruner.penalty()
            (loss / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step:
            pruner.step()
    return model


def go_on(model):
    """Train without a pruner, for longer than what is watched."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2 * UPDATES):
        model(input_ids=IDS, labels=IDS[:, 0] % 2).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("method", PRUNING)
def test_a_right_loop_hears_nothing(method, caplog):
    loop(method, accumulate=3)
    assert caplog.text == ""


def test_steps_that_are_never_counted(caplog):
    loop(step=False, steps=UPDATES)
    assert caplog.text == ""  # the gradient of the next step tells that there were so many
    loop(step=False, steps=3 * UPDATES)
    assert caplog.text.count("pruner.step() was never called") == 1
    assert "scores have not changed" not in caplog.text


@pytest.mark.parametrize("method", PRUNING)
def test_an_optimizer_of_before_prepare(method, caplog):
    loop(method, early=True, steps=3 * UPDATES)
    learned = method != "magnitude"  # which has no scores, and loses nothing
    assert caplog.text.count("the scores have not changed: the optimizer does not have them") == learned


def test_many_passes_to_a_step_are_no_mistake(caplog):
    loop(steps=1, accumulate=3 * UPDATES)
    assert caplog.text == ""


def test_frozen_masks_need_no_steps(caplog):
    model = loop(steps=5)
    finalize(model)
    for weight in model.bert.encoder.parameters():
        weight.data[..., ::2] = 0
    prepare(model, PruningConfig("keep_zeros"), TOTAL)
    go_on(model)
    assert caplog.text == ""


def test_what_is_finalized_is_watched_no_longer(caplog):
    model = finalize(loop(steps=2, step=False))
    go_on(model)
    assert caplog.text == ""


def test_copies_and_files_carry_no_watch(caplog):
    model = loop(step=False, steps=2)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    go_on(twin)
    assert caplog.text == ""
