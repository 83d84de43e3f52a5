"""Measures of gradient flow: the literal values of a quadratic loss, and what a run does with them."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.pruning.methods import measured as measured_rules
from fineprune.pruning.methods.flow import FlowMeasure, Options


class Quadratic(nn.Module):
    """L = (3·a² + b²/2)/2 at (a, b) = (1, 2): g = (3, 1), Hg = (9, 1/2)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, 2.0]]))

    def loss(self):
        return (self.layer.weight.square() * torch.tensor([[3.0, 0.5]])).sum() / 2


def measured(measure, structure="element"):
    model = Quadratic()
    config = PruningConfig("flow", density=0.5, targets="layer", structure=structure)
    pruner = prepare(model, config, 20)
    rule = FlowMeasure(Options(measure=measure))
    rule.bind(model, lambda: [model.loss(), model.loss()])
    found = rule.measure(pruner.targets)[0].view(-1).tolist()
    assert model.layer.weight.tolist() == [[1.0, 2.0]]  # exactly, after the difference
    return pytest.approx(found, rel=1e-4)


def test_a_process_without_a_batch_takes_the_gradients_of_the_others(monkeypatch):
    model = Quadratic()
    target = prepare(model, PruningConfig("flow", density=0.5, targets="layer"), 20).targets[0]
    monkeypatch.setattr(measured_rules.agreement, "several", lambda: True)
    monkeypatch.setattr(measured_rules.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(measured_rules.distributed, "all_reduce", lambda tensor: tensor.add_(2))
    rule = FlowMeasure(Options())
    rule.bind(model, lambda: [])
    assert rule.measure([target])[0].tolist() == [[1, 2]]  # |W g|, where g is 2 of 2 batches


def test_weights_too_coarse_for_differences_are_refused():
    for measure in ("norm_preservation", "grasp"):
        config = PruningConfig("flow", density=0.5, options={"measure": measure})
        with pytest.raises(FinepruneError, match=r"is torch\.bfloat16, too coarse for the differences"):
            prepare(blocks().bfloat16(), config, TOTAL)
    prepare(blocks().bfloat16(), PruningConfig("flow", density=0.5), TOTAL)


def test_the_measures_by_hand():
    assert measured("loss_preservation") == [3, 2]
    assert measured("biased") == [3, 4]
    assert measured("norm_preservation") == [9, 1]
    assert measured("grasp") == [9, 1]
    # The squared norm changes by -2·Wᵀg = -10; its second derivative is 2·(|g|² + WᵀHg) = 40.
    assert -2 * (3 + 2) == -10
    assert 2 * (9 + 1 + 9 + 1) == 40


@pytest.mark.parametrize("measure", ["loss_preservation", "biased", "norm_preservation", "grasp"])
def test_without_a_gradient_the_larger_weight_is_ahead(measure):
    """As before the first cut of a student that is its own teacher."""
    model = Quadratic()
    target = prepare(model, PruningConfig("flow", density=0.5, targets="layer"), 20).targets[0]
    rule = FlowMeasure(Options(measure=measure))
    weight = model.layer.weight
    rule.bind(model, lambda: [(weight - weight.detach()).square().sum()])
    first, second = rule.measure([target])[0].view(-1).tolist()
    assert 0 < first < second < 1e-29


def test_a_row_counts_its_sum():
    assert measured("loss_preservation", "row") == [5]
    assert measured("grasp", "row") == [10]
    assert measured("biased", "row") == [5 * (5 / 2) ** 0.5]  # the root mean square of its weights


def test_grasp_keeps_signs_and_what_is_cut_stays_cut():
    model = Quadratic()
    pruner = prepare(model, PruningConfig("flow", density=0.5, targets="layer"), 20)
    rule = FlowMeasure(Options(measure="grasp"))
    rule.bind(model, lambda: [-model.layer.weight.pow(3).sum() / 6])  # g = -W²/2, H = -W, Hg = W³/2
    torch.testing.assert_close(rule.measure(pruner.targets)[0], torch.tensor([[0.5, 8.0]]), rtol=1e-3, atol=0)
    rule.bind(model, lambda: [model.layer.weight.pow(2).mul(torch.tensor([1.0, -1.0])).sum() / 2])
    torch.testing.assert_close(rule.measure(pruner.targets)[0], torch.tensor([[1.0, 4.0]]), rtol=1e-3, atol=0)
    pruner.targets[0].masked.mask[0, 1] = False
    assert rule.ranked(pruner.targets).tensors[0].argmin() == 1


@pytest.mark.parametrize("measure", ["loss_preservation", "biased", "norm_preservation", "grasp"])
def test_a_run_ends_at_its_density_and_is_an_ordinary_model(measure):
    config = PruningConfig("flow", density=0.25, options={"measure": measure, "batches": 3})
    pruner, keys = prepare(blocks(), config, TOTAL), set(blocks().state_dict())
    assert train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))[-1] == 0.25
    assert set(finalize(pruner.model).state_dict()) == keys


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"measure": "movement"}}, r"options.measure='movement'"),
        ({"options": {"batches": 0}}, r"options.batches=0: must be a whole number, at least 1"),
        ({"mask_interval": 10}, r"mask_interval=10: a cut of flow costs a pass .* 50 steps between two"),
        ({"score_init": "zero"}, r"score_init='zero': flow learns no scores"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(FinepruneError, match=message):
        PruningConfig("flow", **settings)
