"""One optimizer is attached, its steps show the method gradients, and copies are attached anew."""

import copy

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from torch.distributed.checkpoint import state_dict as states
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
    with pytest.raises(FinepruneError, match=r"4 of 4 are not in it, such as blocks\.0\.0; attach one"):
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


@pytest.mark.parametrize("method", ["fisher", "powerprop", "movement"])
def test_weights_over_two_optimizers_are_refused(method):
    pruner = prepared(method)
    first = {id(entry) for entry in pruner.model.blocks[0].parameters()}
    optimizer = adamw([entry for entry in pruner.model.parameters() if id(entry) not in first])
    with pytest.raises(FinepruneError, match=r"has not all of the pruned weights, 2 of 4 .*, such as bl"):
        pruner.attach(optimizer)
    for target in pruner.targets:
        target.weight.requires_grad_(id(target.weight) not in first)
    pruner.attach(optimizer)


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


@pytest.mark.parametrize("method", ["fisher", "platon", "pins", "grain", "admm"])
@pytest.mark.parametrize("fused", [False, True])
def test_scores_of_a_scaled_loss_are_those_without(method, fused):
    """The scaler unscales the gradients that a rule reads, before they count in the norm that clips."""
    found = []
    for scale in (1.0, 2.0**16):
        settings = {"warmup": 0, "cooldown": 0, "mask_interval": 1}
        options = {"options": {"window": 1}} if method in ("platon", "pins") else {}
        pruner = prepare(blocks(), PruningConfig(method, density=0.25, **settings, **options), TOTAL)
        optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        norms = []
        for _ in range(4):
            scaler.scale(functional.cross_entropy(pruner.model(TOKENS), torch.tensor([0, 1]))).backward()
            scaler.unscale_(optimizer)
            norms.append(torch.nn.utils.clip_grad_norm_(pruner.model.parameters(), 1.0))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            pruner.step()
        found.append((norms, [target.scores.detach().clone() for target in pruner.targets]))
    (norms, scores), (scaled_norms, scaled) = found
    assert torch.stack(norms).allclose(torch.stack(scaled_norms), rtol=1e-4)
    assert all(one.allclose(other, rtol=1e-3, atol=1e-12) for one, other in zip(scores, scaled, strict=True))


@pytest.mark.parametrize("method", ["fisher", "platon", "pins", "grain", "admm"])
def test_states_of_distributed_checkpoints(method):
    """Of which each parameter of an optimizer needs one; to load them torch takes a step of nothing."""
    options = {"mask_interval": 1, "options": {"window": 1}} if method in ("platon", "pins") else {}
    whole, resumed = (prepared(method, warmup=2, cooldown=2, **options) for _ in range(2))
    optimizer, other = (pruner.optimizer(torch.optim.AdamW, 1e-2) for pruner in (whole, resumed))
    train(whole, 5, optimizer=optimizer)
    optimizer.zero_grad()
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.load_state_dict(whole.state_dict())
    saved = copy.deepcopy(states.get_optimizer_state_dict(whole.model, optimizer))
    states.set_optimizer_state_dict(resumed.model, other, saved)
    for pruner, moved in ((whole, optimizer), (resumed, other)):
        train(pruner, 5, optimizer=moved)
    for one, another in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, another)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_loss_scaler_skips(fused):
    pruner = prepared()
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2, fused=fused)
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
