"""The diagonal Fisher: the literal values of its formula, and what a run does with it."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from torch import nn

from fineprune import PruningConfig, finalize, prepare
from fineprune.pruning.methods.fisher import ExpectedLoss, Options


def prepared(**options):
    return prepare(blocks(), PruningConfig("fisher", density=0.25, options=options), TOTAL)


def pair(structure="element"):
    """A pruner of the matrix (1, 3), whose gradients the test sets."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 3.0]]))
    return prepare(model, PruningConfig("fisher", density=0.5, targets="0", structure=structure), 20).targets[
        0
    ]


def ranked(target, first_order, **options):
    rule = ExpectedLoss(Options(decay=0.0, **options))
    target.scores.grad = torch.tensor(first_order)
    rule.observe([target], 1, lambda _: 0.1)
    return rule.ranked([target]).tensors[0].tolist()


def test_the_score_by_hand():
    # g = (2, 1), so g² = (4, 1) and W²·g² = (4, 9)
    assert ranked(pair(), [[2.0, 3.0]], damp=0.0) == [[2.0, 4.5]]
    # the mean g², weighed by W², is (4 + 1)/(1 + 9), so lambda = 1
    assert ranked(pair(), [[2.0, 1.0]], damp=2.0) == [[pytest.approx(2.5), pytest.approx(5.0)]]


def test_a_row_counts_the_square_of_its_sum():
    # ½·(5² + lambda·(1 + 9)), lambda = 25/10
    assert ranked(pair("row"), [5.0], damp=1.0) == [pytest.approx(25.0)]


def test_the_mean_runs_over_steps():
    target, rule = pair(), ExpectedLoss(Options(decay=0.5))
    for first_order in (2.0, 4.0):
        target.scores.grad = torch.full((1, 2), first_order)
        rule.observe([target], 1, lambda _: 0.1)
    assert target.scores.tolist() == [[9.0, 9.0]]  # 0 -> 2 -> 9


def test_before_a_gradient_the_larger_weight_stays():
    assert ExpectedLoss(Options()).ranked([pair()]).tensors[0].tolist() == [[0.5, 4.5]]


def test_a_run_ends_at_its_density_and_is_an_ordinary_model():
    pruner, keys = prepared(), set(blocks().state_dict())
    optimizer = pruner.optimizer(torch.optim.SGD, 1e-2)
    assert train(pruner, TOTAL, optimizer=optimizer)[-1] == 0.25
    assert set(finalize(pruner.model).state_dict()) == keys


def test_a_resume_is_bit_for_bit():
    assert_resumes(prepared, 14)
