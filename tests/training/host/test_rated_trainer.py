import pytest
import torch
from support import tiny_bert
from transformers import TrainerCallback, TrainingArguments

from fineprune.config import PruningConfig
from fineprune.training.host.learning_rates import Plan, Rates
from fineprune.training.host.rated_trainer import RatedTrainer


@pytest.fixture
def trainer(tmp_path):
    def make(rates, steps=10, fused=False, **settings):
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
            fused=fused,
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

    class Watch(TrainerCallback):
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


@pytest.mark.parametrize("fused", [True, False])
def test_evaluations_may_leave_eager_attention(trainer, fused):
    rated = trainer(Rates(), fused=fused)
    rated.model.set_attn_implementation("eager")
    seen = []
    rated.model.bert.register_forward_hook(
        lambda module, *_: seen.append((module.training, module.config._attn_implementation))
    )
    rated.train()
    rated.evaluate(rated.train_dataset)
    assert set(seen) == {(True, "eager"), (False, "sdpa" if fused else "eager")}


@pytest.mark.parametrize(("fused", "long_from"), [(True, 3), (True, 4), (False, 3)])
def test_long_batches_may_leave_eager_attention(trainer, monkeypatch, fused, long_from):
    monkeypatch.setattr("fineprune.training.host.attention._FUSED_FROM", long_from)
    rated = trainer(Rates(), fused=fused)
    rated.model.set_attn_implementation("eager")
    seen = set()
    rated.model.bert.register_forward_hook(lambda module, *_: seen.add(module.config._attn_implementation))
    rated.train()
    assert seen == {"sdpa" if fused and long_from == 3 else "eager"}  # its rows have three tokens
    assert rated.model.config._attn_implementation == "eager"
