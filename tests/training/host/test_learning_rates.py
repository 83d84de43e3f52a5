"""Learning rates over a run, and the groups that have rates of their own."""

import pytest
import torch
from support import tiny_bert
from transformers import TrainingArguments
from transformers.optimization import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.training.host.learning_rates import Plan, RatedTrainer, Rates


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


@pytest.fixture
def trainer(tmp_path):
    def make(rates, steps=10, **settings):
        rows = [{"input_ids": [2, 3 + i % 4, 1], "labels": i % 2} for i in range(16)]
        return RatedTrainer(
            model=tiny_bert(),
            args=TrainingArguments(
                str(tmp_path),
                max_steps=steps,
                learning_rate=1e-3,
                warmup_steps=2,
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                per_device_train_batch_size=4,
                save_steps=5,
                weight_decay=0.01,
                **settings,
            ),
            train_dataset=rows,
            pruning=PruningConfig("movement", density=0.5, warmup=2, cooldown=4, score_lr=0.02),
            rates=rates,
        )

    return make


def peaks(trainer):
    """The peak rate and the decay of each parameter, by name."""
    names = {id(entry): name for name, entry in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    return {
        names[id(entry)]: (group["initial_lr"], group["weight_decay"])
        for group in groups
        for entry in group["params"]
    }


def test_groups_with_rates_of_their_own(trainer):
    rated = trainer(Rates(Plan("hold"), Plan("cosine"), head=5e-3, norms=2e-3))
    rated.create_optimizer_and_scheduler(10)
    found = peaks(rated)
    trained = {name for name, entry in rated.model.named_parameters() if entry.requires_grad}
    assert set(found) == trained
    assert found["classifier.weight"] == (5e-3, 0.01)
    assert found["classifier.bias"] == (5e-3, 0.0)
    assert found["bert.encoder.layer.0.output.LayerNorm.weight"] == (2e-3, 0.0)
    assert found["bert.encoder.layer.0.attention.self.query.bias"] == (2e-3, 0.0)
    assert found["bert.pooler.dense.weight"] == (1e-3, 0.01)
    scores = [value for name, value in found.items() if name.endswith("scores")]
    assert scores == [(0.02, 0.0)] * 12


def test_rates_of_a_training_follow_the_plans(trainer):
    rated = trainer(Rates(Plan("hold"), Plan("cosine")))
    seen = []

    class Watch(__import__("transformers").TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            seen.append({round(group["lr"] / group["initial_lr"], 12) for group in optimizer.param_groups})

    rated.add_callback(Watch())
    rated.train()
    weights = [Plan("hold").factor(step, 10, 2, 4) for step in range(10)]
    scores = [Plan("cosine").factor(step, 10, 2, 4) for step in range(10)]
    assert seen == [{round(a, 12), round(b, 12)} for a, b in zip(weights, scores, strict=True)]


def test_a_resumed_training_ends_the_same(trainer, tmp_path):
    rates = Rates(Plan("cycles", 2), head=5e-3)
    whole = trainer(rates)
    whole.train()
    again = trainer(rates)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for (name, one), (_, other) in zip(
        whole.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
