"""One optimizer is attached, its steps show the method gradients, and copies are attached anew."""

import copy

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from torch.nn import functional

from fineprune import FinepruneError, PruningConfig, prepare

TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def prepared(method="fisher", **settings):
    return prepare(blocks(), PruningConfig(method, density=0.25, **settings), TOTAL)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)


def backward(pruner, factor=1.0):
    (factor * functional.cross_entropy(pruner.model(TOKENS), torch.tensor([0, 1]))).backward()


@pytest.mark.parametrize("method", ["soft_movement", "fisher", "powerprop"])
def test_a_second_optimizer_is_refused_while_the_first_is_there(method):
    pruner = prepared(method)
    first, second = (adamw(pruner.model.parameters()) for _ in range(2))
    pruner.attach(first)
    scheduler = torch.optim.lr_scheduler.LinearLR(first)
    with pytest.raises(FinepruneError, match=r"attached to another optimizer already") as refused:
        pruner.attach(second)
    assert "attach only the one that has the pruned weights" in str(refused.value)
    del first, scheduler
    pruner.attach(second)


def test_a_method_that_needs_nothing_of_its_optimizer_takes_two():
    pruner = prepared("magnitude")
    optimizers = [adamw(pruner.model.parameters()) for _ in range(2)]
    for optimizer in optimizers:
        pruner.attach(optimizer)


@pytest.mark.parametrize("method", ["fisher", "powerprop"])
def test_body_and_head_have_an_optimizer_each(method):
    pruner, alone = prepared(method), prepared(method)
    head = adamw(pruner.model.head.parameters())
    with pytest.raises(FinepruneError, match=r"none of the pruned weights, such as blocks\.0\.0; attach the"):
        pruner.attach(head)
    heads = {id(entry) for entry in pruner.model.head.parameters()}
    body = adamw([entry for entry in pruner.model.parameters() if id(entry) not in heads])
    pruner.attach(body)

    def follow(*_):
        head.step()
        head.zero_grad()

    body.register_step_post_hook(follow)
    whole = adamw(alone.model.parameters())
    alone.attach(whole)
    assert train(pruner, TOTAL, optimizer=body) == train(alone, TOTAL, optimizer=whole)
    for one, other in zip(pruner.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["fisher", "powerprop"])
def test_a_copy_is_attached_anew(method):
    pruner = prepared(method)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    train(pruner, 3, optimizer=optimizer)
    twin, copied = copy.deepcopy((pruner, optimizer))
    lost = copy.deepcopy((pruner, optimizer))
    with pytest.raises(FinepruneError, match=r"was not attached; call pruner\.attach\(optimizer\)"):
        train(lost[0], 1, optimizer=lost[1])
    twin.attach(copied)
    assert train(twin, 5, optimizer=copied) == train(pruner, 5, optimizer=optimizer)
    for one, other in zip(twin.model.parameters(), pruner.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_steps_that_a_loss_scaler_skips():
    pruner = prepared()
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for _ in range(3):
        scaler.scale(torch.ones(()))
        backward(pruner, float("inf"))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        pruner.step()
    assert not any(target.scores.any() for target in pruner.targets)
    backward(pruner)
    optimizer.step()
    pruner.step()
    assert all(target.scores.isfinite().all() and target.scores.any() for target in pruner.targets)


@pytest.mark.parametrize("method", ["fisher", "platon", "pins", "grain", "admm"])
def test_an_optimizer_that_never_steps_before_the_pruner(method):
    settings = {"warmup": 10} if method in ("platon", "pins") else {}
    pruner = prepare(blocks(), PruningConfig(method, density=0.25, **settings), 100)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    for _ in range(20):
        backward(pruner)
        pruner.step()
        optimizer.step()
    backward(pruner)
    with pytest.raises(FinepruneError, match=r"its optimizer has not stepped: call pruner\.step\(\) after"):
        pruner.step()
