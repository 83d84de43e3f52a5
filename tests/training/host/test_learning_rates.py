import pytest
import torch
from transformers.optimization import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from fineprune.errors import FinepruneError
from fineprune.training.host.learning_rates import Plan


@pytest.mark.parametrize(
    ("plan", "run", "factors"),
    [
        (Plan("hold"), (10, 2, 4), {0: 0, 1: 0.5, 2: 1, 6: 1, 8: 0.5, 10: 0}),
        (Plan("hold", final=0.5), (10, 0, 4), {0: 1, 6: 1, 8: 0.75, 10: 0.5}),
        (Plan("hold"), (10, 0, 0), {0: 1, 10: 1}),
        (Plan("cycles", 2, 0.1), (8, 0, 0), {0: 1, 2: 0.55, 4: 1, 6: 0.55, 8: 0.1}),
        (Plan("cycles", 2), (8, 2, 0), {1: 0.5, 2: 1, 3: 0.5, 4: 1, 6: 0.5, 8: 0}),
        (Plan("cycles", 2), (5, 0, 0), {0: 1, 1: 2 / 3, 2: 1 / 3, 3: 1, 4: 0.5, 5: 0}),  # 3 steps, then 2
        (Plan("linear", final=0.2), (10, 0, 0), {0: 1, 5: 0.6, 10: 0.2}),
        (Plan("cosine"), (8, 0, 0), {0: 1, 2: 0.8535533905932737, 4: 0.5, 8: 0}),  # (1 + sqrt(1/2)) / 2
    ],
)
def test_factors(plan, run, factors):
    assert {step: plan.factor(step, *run) for step in factors} == pytest.approx(factors)


@pytest.mark.parametrize(
    ("shape", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_the_shapes_that_transformers_has_are_the_same(shape, theirs):
    for total, warmup in ((10, 2), (400, 20), (7, 0)):
        function = theirs(torch.optim.SGD([torch.zeros(1)], lr=1.0), warmup, total).lr_lambdas[0]
        ours = [Plan(shape).factor(step, total, warmup, 3) for step in range(total + 1)]
        assert ours == pytest.approx([function(step) for step in range(total + 1)], abs=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "hodl"}, "did you mean hold"),
        ({"shape": "cycles", "cycles": 0}, "cycles=0: must be a whole number, at least 1"),
        ({"shape": "cycles", "cycles": True}, "cycles=True"),
        ({"cycles": 2}, "only with training.schedule=cycles, not linear"),
        ({"final": 1.5}, r"final_lr=1\.5: must be a share of the learning rate, in \[0, 1\]"),
        ({"final": float("nan")}, "final_lr=nan"),
    ],
)
def test_plans_that_make_no_sense(settings, message):
    with pytest.raises(FinepruneError, match=message):
        Plan(**settings)


@pytest.mark.parametrize(
    ("plan", "run", "message"),
    [
        (Plan("cycles", 11), (10, 0, 0), "the run has 10 steps"),
        (Plan("cycles", 2), (10, 5, 0), "the first of 2 cycles has 5"),
        (
            Plan("hold"),
            (10, 6, 5),
            "6 steps of warm-up and 5 at the final density are more than the run's 10",
        ),
    ],
)
def test_runs_too_short_for_their_plan(plan, run, message):
    with pytest.raises(FinepruneError, match=message):
        plan.check(*run)
