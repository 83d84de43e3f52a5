"""Magnitude pruning whose pruned weights go on training: shares of their gradient, and a pull to 0."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from support import tiny_bert
from torch import nn
from torch.nn.utils import parametrize

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.pruning.masked_weight import Decayed, MaskedWeight


def prepared(options):
    return prepare(blocks(), PruningConfig("magnitude", density=0.25, warmup=2, options=options), TOTAL)


@pytest.mark.parametrize(("share", "expected"), [(1.0, [5.0, 5.0]), (0.5, [2.5, 5.0]), (0.0, [0.0, 5.0])])
def test_the_gradient_by_hand(share, expected):
    # dL/dW' = (5, 5), W = (1, 2), M = (0, 1)
    linear = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
    masked = MaskedWeight(linear.weight, None, weight_gradient=Decayed(3.0))
    masked.mask[0, 0] = False
    masked.get_buffer("flow").fill_(share)
    parametrize.register_parametrization(linear, "weight", masked, unsafe=True)
    out = linear(torch.ones(1, 2))
    assert out.item() == 2.0
    (5 * out).sum().backward()
    assert linear.parametrizations.weight.original.grad.tolist()[0] == pytest.approx(expected)


def cut(model, **settings):
    """A pruner of a model that was cut to a half, with a pull of 0.1, and its optimizer."""
    options = {"pruned_decay": 0.1}
    config = PruningConfig("magnitude", 0.5, warmup=0, cooldown=0, options=options, **settings)
    pruner = prepare(model, config, 1)
    optimizer = pruner.optimizer(torch.optim.SGD, 1.0, fused=True)  # which would unscale by itself
    pruner.step()
    return pruner, optimizer


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize(("parts", "scale"), [(1, 1.0), (4, 1.0), (1, 1024.0), (4, 1024.0)])
def test_pruned_weights_shrink_once_a_step(uses, parts, scale):
    """By 0.1·W, whatever the micro-batches, the uses of a layer and the scale of the loss are."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    pruner, optimizer = cut(nn.Sequential(*[layer] * uses), targets="0")
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for rows in torch.ones(4, 2).split(4 // parts):
        scaler.scale(pruner.model(rows).sum() / 100).backward()
    scaler.step(optimizer)
    first, second = pruner.targets[0].weight.tolist()
    assert first == pytest.approx([0.9, -1.8])
    assert 2 < second[0] < 3  # which stays


def test_what_an_outer_level_prunes_shrinks_too():
    levels = [{"feed_forward": "neuron", "density": 0.75}, "element"]
    pruner, optimizer = cut(tiny_bert(), structure=levels)
    before = [target.weight.detach().clone() for target in pruner.targets]
    pruner.model(torch.ones(1, 4, dtype=torch.long), labels=torch.tensor([0])).loss.backward()
    optimizer.step()
    for target, old in zip(pruner.targets, before, strict=True):
        pruned = ~target.masked.kept()
        assert torch.allclose(target.weight[pruned], 0.9 * old[pruned])
    assert any((target.masked.mask & ~target.masked.kept()).any() for target in pruner.targets)


def test_a_frozen_weight_does_not_shrink():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    pruner, optimizer = cut(model, targets=["0", "1"])
    pruner.model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(pruner.targets[0].weight, before)


def test_a_pull_needs_the_optimizer_that_has_the_weights():
    pruner = prepared({"pruned_decay": 0.1})
    with pytest.raises(FinepruneError, match=r"changes the steps of the optimizer, .* pruner\.optimizer"):
        pruner.parameter_groups(1e-2)
    with pytest.raises(FinepruneError, match=r"changes the steps of the optimizer, which was not attached"):
        pruner.step()
    some = [target.weight for target in pruner.targets[1:]]
    with pytest.raises(FinepruneError, match=r"has not all of the pruned weights, 1 of 4 are not in it"):
        pruner.attach(torch.optim.SGD(some, 1e-2))
    prepared({"weight_gradient": "dense"}).parameter_groups(1e-2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # t_i = 2, T - t_f = 14: x = 6/12 after 8 steps, 9/12 after 11
        ({"weight_gradient": "decayed"}, [1.0, 0.5**3, 0.25**3, 0.0, 0.0]),
        ({"weight_gradient": "decayed", "flow": "linear"}, [1.0, 0.5, 0.25, 0.0, 0.0]),
        ({"weight_gradient": "dense"}, [1.0] * 5),
    ],
)
def test_the_share_of_pruned_weights_by_step(options, expected):
    pruner = prepared(options)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    shares = []
    for _ in range(TOTAL):
        train(pruner, 1, optimizer=optimizer)
        shares.append(pruner.targets[0].masked.get_buffer("flow").item())
    assert [shares[step - 1] for step in (2, 8, 11, 14, TOTAL)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "options", [{"weight_gradient": "dense"}, {"weight_gradient": "decayed"}, {"pruned_decay": 0.1}]
)
def test_a_run_trains_pruned_weights_and_ends_as_an_ordinary_model(options):
    pruner, keys = prepared(options), set(blocks().state_dict())
    optimizer = pruner.optimizer(torch.optim.SGD, 1e-2)
    train(pruner, 8, optimizer=optimizer)
    target = pruner.targets[0]
    cut = ~target.masked.mask
    before = target.weight.detach()[cut]
    train(pruner, 1, optimizer=optimizer)
    assert (target.weight.detach()[cut] != before).all()
    assert train(pruner, TOTAL - 9, optimizer=optimizer)[-1] == 0.25
    assert set(finalize(pruner.model).state_dict()) == keys


def test_a_resume_is_bit_for_bit():
    options = {"weight_gradient": "decayed", "flow": "linear", "pruned_decay": 0.01}
    assert_resumes(lambda: prepared(options), 9)
