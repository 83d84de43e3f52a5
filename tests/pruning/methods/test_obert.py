"""oBERT: the literal values of its formulas, its parts of a cut, and what a run does with it."""

import pytest
import torch
from pruning.blocks import BLOCK_WEIGHTS, TOTAL, blocks, losses, train
from pruning.methods.resuming import assert_resumes
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.pruning.methods import obert
from fineprune.pruning.methods.obert import BlockFisher


def prepared(density=0.25, **options):
    return prepare(blocks(), PruningConfig("obert", density=density, options={"block": 5, **options}), TOTAL)


class Pair(nn.Module):
    """One matrix, (1, 2), whose gradient is (1, 1)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, 2.0]]))

    def loss(self):
        return self.layer(torch.ones(1, 2)).sum()


def test_scores_and_compensation_by_hand():
    inverse = obert.invert(torch.ones(1, 2, 2), 1.0)
    torch.testing.assert_close(inverse, torch.tensor([[[2.0, -1.0], [-1.0, 2.0]]]) / 3)
    weight = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(obert.expected_loss(weight, inverse), torch.tensor([[0.75, 3.0]]))
    cut = torch.tensor([[True, False]])
    torch.testing.assert_close(obert.without(weight, inverse, cut), torch.tensor([[0.0, 2.5]]))


def test_a_cut_by_hand():
    """The mean g² is 1, so damp = 1 is lambda = 1."""
    model = Pair()
    config = PruningConfig(
        "obert", density=0.5, targets="layer", options={"block": 2, "damp": 1.0, "gradients": 3}
    )
    pruner = prepare(model, config, 2)
    pruner.measure_on(lambda: (model.loss() for _ in range(5)))
    pruner.step()
    assert pruner.density == 0.5
    torch.testing.assert_close(pruner.targets[0].weight.detach(), torch.tensor([[0.0, 2.5]]))
    assert pruner.targets[0].weight.grad is None


def test_a_block_of_one_is_the_diagonal():
    """W²·(g² + lambda)/2, with lambda = damp·mean g² = 1."""
    pruner = prepare(
        Pair(), PruningConfig("obert", density=0.5, targets="layer", options={"block": 1, "damp": 1.0}), 2
    )
    rule = pruner._method.bundle.rule
    rule.bind(pruner.model, lambda: [pruner.model.loss()])
    torch.testing.assert_close(rule.measure(pruner.targets)[0], torch.tensor([[1.0, 4.0]]))


def test_the_last_block_of_a_matrix_may_be_short():
    weight = torch.arange(1.0, 8.0)
    inverse = torch.eye(5).expand(2, 5, 5)
    torch.testing.assert_close(obert.expected_loss(weight, inverse), weight**2 / 2)
    cut = weight > 6
    assert obert.without(weight, inverse, cut).tolist() == [1, 2, 3, 4, 5, 6, 0]


def test_a_cut_in_parts_ranks_anew_in_each(monkeypatch):
    pruner = prepared(recompute=3)
    densities, measure = [], BlockFisher.measure

    def watched(rule, targets):
        found = measure(rule, targets)
        densities.append(pruner.density)
        return found

    monkeypatch.setattr(BlockFisher, "measure", watched)
    train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.SGD, 1e-2))
    assert densities == [1.0, 0.75, 0.5]  # one cut, at the end of the schedule
    assert pruner.density == 0.25


def test_what_is_cut_stays_cut():
    config = PruningConfig("obert", density=0.25, warmup=1, cooldown=5, options={"block": 1}, mask_interval=4)
    pruner = prepare(blocks(), config, TOTAL)
    optimizer, dead = pruner.optimizer(torch.optim.AdamW, 1e-2), None
    for _ in range(TOTAL):
        train(pruner, 1, optimizer=optimizer)
        now = [~target.masked.mask for target in pruner.targets]
        if dead is not None:
            assert all(bool(mask[before].all()) for mask, before in zip(now, dead, strict=True))
        dead = now
    assert sum(int(mask.sum()) for mask in dead) == BLOCK_WEIGHTS * 3 // 4


def test_a_run_is_an_ordinary_model_and_changes_no_gradient_or_mode():
    pruner, keys = prepared(), set(blocks().state_dict())
    modes = []
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    train(pruner, 13, optimizer=optimizer)

    def watched():
        modes.append(pruner.model.training)
        yield from losses(pruner.model)

    pruner.measure_on(watched)
    held = [entry for entry in pruner.model.parameters() if entry.grad is not None]
    before = [entry.grad.clone() for entry in held]
    pruner.step()
    assert modes == [False]
    assert pruner.model.training
    assert held
    assert all(torch.equal(entry.grad, gradient) for entry, gradient in zip(held, before, strict=True))
    assert pruner.density == 0.25
    for _ in range(6):
        pruner.step()
    assert modes == [False]  # no cut after the last density
    assert set(finalize(pruner.model).state_dict()) == keys


@pytest.mark.parametrize("steps", [3, 14])
def test_a_resume_is_bit_for_bit(steps):
    assert_resumes(lambda: prepared(recompute=2), steps)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"block": 65}}, r"options.block=65: must be a whole number, from 1 to 64"),
        ({"options": {"gradients": 0}}, r"options.gradients=0: must be a whole number, at least 1"),
        ({"options": {"recompute": True}}, r"options.recompute=True: must be a whole number"),
        ({"options": {"damp": 0}}, r"options.damp=0: must be a number greater than 0"),
        ({"mask_interval": 49}, r"mask_interval=49: a cut of obert costs .* 50 steps between two"),
        ({"structure": "row"}, r"structure='row': obert prunes elements only"),
        ({"score_lr": 0.1}, r"score_lr=0.1: obert learns no scores"),
        ({"penalty": 1.0}, r"penalty=1.0: obert has no penalty"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(FinepruneError, match=message):
        PruningConfig("obert", **settings)


def test_more_memory_than_there_is_is_refused_before_anything_is_spent(monkeypatch):
    monkeypatch.setattr(obert, "_free_bytes", lambda device: 1000)
    with pytest.raises(FinepruneError, match=r"options.block=5: the blocks need 0.0 GB .* a smaller block"):
        prepared()  # 4 · 5 · 192 bytes


def test_a_loop_that_gives_nothing_to_measure_is_refused():
    with pytest.raises(FinepruneError, match=r"method='obert': it measures before each cut, .*measure_on\("):
        prepared().step()
    with pytest.raises(FinepruneError, match="method='magnitude': it measures nothing"):
        prepare(blocks(), PruningConfig("magnitude"), TOTAL).measure_on(list)
    with pytest.raises(FinepruneError, match="measure_on: list is no function; give one that makes"):
        prepared().measure_on([torch.zeros(())])
    with pytest.raises(FinepruneError, match="nothing to measure: give a warmup of at least 1 step"):
        prepare(blocks(), PruningConfig("obert", initial_density=0.5, warmup=0), TOTAL)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda model: [], "measure_on: it gave no loss"),
        (lambda model: [torch.zeros(())], "measure_on: a loss has no gradient"),
        (
            lambda model: [0.5],
            r"a loss is a float, expected a tensor with its graph; leave out .item",
        ),
        (lambda model: [0 * next(losses(model))], "all gradients are 0 or nan"),
    ],
)
def test_losses_that_say_nothing_are_refused(found, message):
    pruner = prepared()
    pruner.measure_on(lambda: found(pruner.model))
    for _ in range(13):
        pruner.step()
    with pytest.raises(FinepruneError, match=message):
        pruner.step()
