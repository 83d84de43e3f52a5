"""`method="keep_zeros"`: the zeros that a model came with stay zeros, whatever is trained."""

import copy
import json

import pytest
import torch
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, prepare, summary
from fineprune.config import METHODS

KEEP_ZEROS = PruningConfig("keep_zeros")


class Blocks(nn.Module):
    """Two blocks of two layers and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(2)
        )
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def layers(self):
        return [block[index] for block in self.blocks for index in (0, 2)]


def sparse():
    """Of 4 x 48 weights every second stays, and of the last matrix all but one."""
    model = Blocks()
    with torch.no_grad():
        for layer in model.layers()[:3]:
            layer.weight.view(-1)[::2] = 0
        model.layers()[3].weight[5, 7] = 0
    return model


KEPT = 3 * 24 + 47


def zeros(model):
    return [layer.weight == 0 for layer in model.layers()]


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def train(pruner, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(pruner.model(x), (x[:, 0] > 0).long()) + pruner.penalty()
        loss.backward()
        optimizer.step()
        pruner.step()
        losses.append(loss.item())
    return losses


OPTIMIZERS = {
    "adamw, decay": lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
    "sgd, momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rprop": torch.optim.Rprop,  # goes by the gradient's sign alone
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_moves_the_weights_and_no_zero(name):
    model = sparse()
    held, before = zeros(model), [layer.weight.detach().clone() for layer in model.layers()]
    pruner = prepare(model, KEEP_ZEROS, 20)
    assert pruner.density == KEPT / 192
    optimizer = OPTIMIZERS[name](pruner.parameter_groups(lr=1e-2))
    losses = train(pruner, optimizer, 20)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert pruner.density == KEPT / 192
    finalize(model)
    assert same(zeros(model), held)
    assert summary(model).kept == KEPT
    for layer, was in zip(model.layers(), before, strict=True):
        assert not torch.equal(layer.weight, was)
        assert not layer.weight[was == 0].signbit().any()


def test_what_an_optimizer_does_to_a_zero_is_neither_seen_nor_kept():
    model = sparse()
    held, x = zeros(model), torch.randn(3, 6)
    pruner = prepare(model, KEEP_ZEROS, 5)
    with torch.no_grad():
        expected = model(x)
        for target, zero in zip(pruner.targets, held, strict=True):
            target.weight[zero] = 7.0
        assert torch.equal(model(x), expected)
    finalize(model)
    assert same(zeros(model), held)


def test_nothing_is_scheduled_selected_or_scored():
    pruner = prepare(sparse(), PruningConfig("keep_zeros", density=0.9, warmup=500, cooldown=500), 3)
    masks = [target.masked.mask.clone() for target in pruner.targets]
    for _ in range(4):
        assert pruner.at_final_density
        assert (pruner.threshold, pruner.lambda_, pruner.changed) == (None, 0.0, 0.0)
        assert pruner.penalty().item() == 0
        assert pruner.score_lr is None
        pruner.step()
    assert same(masks, [target.masked.mask for target in pruner.targets])
    assert [target.masked.scores for target in pruner.targets] == [None] * 4
    assert not METHODS["keep_zeros"].learns_scores


def test_a_model_without_zeros_is_refused_as_it_is():
    model = Blocks()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        FinepruneError, match="none of the 4 matrices has a zero, so there is nothing"
    ) as error:
        prepare(model, KEEP_ZEROS, 10)
    assert "\n" not in str(error.value)
    assert set(model.state_dict()) == set(before)
    with torch.no_grad():
        model.layers()[2].weight[0, 0] = 0  # one is enough
    assert prepare(model, KEEP_ZEROS, 10).density == 191 / 192


def test_only_the_targets_are_held():
    model = sparse()
    pruner = prepare(model, PruningConfig("keep_zeros", targets="blocks.0.*"), 20)
    assert [target.name for target in pruner.targets] == ["blocks.0.0", "blocks.0.2"]
    before = zeros(model)
    train(pruner, torch.optim.Adam(pruner.parameter_groups(1e-2)), 20)
    finalize(model)
    after = zeros(model)
    assert same(after[:2], before[:2])
    assert not after[2].any()  # not held, and trained


def test_a_total_of_steps_that_is_none():
    with pytest.raises(FinepruneError, match="total_steps=0"):
        prepare(sparse(), KEEP_ZEROS, 0)


def test_half_precision_weights_and_tied_ones():
    model = sparse().to(torch.bfloat16)
    model.blocks[1][0].weight = model.blocks[0][0].weight
    pruner = prepare(model, KEEP_ZEROS, 5)
    assert [target.masked.mask.sum().item() for target in pruner.targets] == [24, 24, 47]
    assert pruner.model.blocks[1][0].weight.dtype == torch.bfloat16
    finalize(model)
    assert model.blocks[1][0].weight is model.blocks[0][0].weight
    assert model.blocks[0][0].weight.count_nonzero() == 24


def test_resume_goes_on_bit_for_bit_with_the_masks_of_the_checkpoint():
    whole = prepare(sparse(), KEEP_ZEROS, 12)
    optimizer = torch.optim.Adam(whole.parameter_groups(1e-2))
    train(whole, optimizer, 6, seed=1)
    saved = copy.deepcopy((whole.model.state_dict(), optimizer.state_dict()))
    state = json.loads(json.dumps(whole.state_dict()))
    expected = train(whole, optimizer, 6, seed=2)

    model = sparse()
    with torch.no_grad():
        model.layers()[0].weight.fill_(1.0)  # what it started from does not matter any more
    resumed = prepare(model, KEEP_ZEROS, 12)
    resumed.model.load_state_dict(saved[0])
    resumed.load_state_dict(state)
    other = torch.optim.Adam(resumed.parameter_groups(1e-2))
    other.load_state_dict(saved[1])
    assert resumed.density == KEPT / 192
    assert train(resumed, other, 6, seed=2) == expected


def test_after_another_method_and_again():
    model = Blocks()
    prepare(model, PruningConfig("magnitude", density=0.25, warmup=0, cooldown=1), 2).step()
    finalize(model)
    held = zeros(model)
    for _ in range(2):
        pruner = prepare(model, KEEP_ZEROS, 4)
        train(pruner, torch.optim.Adam(pruner.parameter_groups(1e-2)), 4)
        finalize(model)
        assert same(zeros(model), held)
    assert summary(model).density == 0.25


def test_steps_do_not_look_at_masks_that_cannot_change(monkeypatch):
    pruner = prepare(sparse(), KEEP_ZEROS, 3)
    monkeypatch.setattr(pruner, "_refresh", lambda: pytest.fail("the masks were made again"))
    for _ in range(3):
        pruner.step()
    assert (pruner.steps_done, pruner.changed) == (3, 0)
