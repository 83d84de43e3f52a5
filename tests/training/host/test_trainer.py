"""PruningTrainer: what it adds to the Trainer's loss, logs and model folders."""

import itertools

import pytest
import torch
from transformers import AutoModelForSequenceClassification, TrainingArguments

from fineprune import PruningConfig, summary
from fineprune.config import METHODS
from fineprune.training.host.sampler import GroupedByLength

CONFIGS = {"dense": None} | {name: PruningConfig(name, density=0.2) for name in METHODS}


# -- loss -------------------------------------------------------------------------------------

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("name", ["dense", "magnitude", "movement", "soft_movement"])
def test_accumulating_two_batches_of_4_is_a_batch_of_8(make_trainer, make_model, name, history, tensors):
    one = make_trainer(CONFIGS[name], given={"model": make_model(**NO_DROPOUT)}, optim="sgd")
    one.train()
    two = make_trainer(
        CONFIGS[name],
        "other",
        given={"model": make_model(**NO_DROPOUT)},
        optim="sgd",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    two.train()
    assert two.state.global_step == 12
    for ours, theirs in zip(history(one), history(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    expected = tensors(one)
    for key, value in tensors(two).items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(value, expected[key])


def mean_loss(outputs, labels, num_items_in_batch=None):
    """As a user of `compute_loss_func` writes it: the sum over the items of the whole step."""
    total = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def test_with_a_loss_function_of_the_users_the_penalty_still_counts_once(make_trainer, make_model):
    losses = []
    for batch, accumulation in ((8, 1), (4, 2)):
        trainer = make_trainer(
            PruningConfig("l0", penalty=50.0),
            given={"model": make_model(**NO_DROPOUT), "compute_loss_func": mean_loss},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            save_strategy="no",
            eval_strategy="no",
            max_steps=4,
        )
        first = float(trainer.pruner.penalty().detach())
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"] - first)
    assert losses[0] == pytest.approx(losses[1], abs=0.3)  # the penalty is above 40
    assert all(0 < loss < 3 for loss in losses)


def test_the_penalty_joins_the_training_loss_and_not_the_evaluation_loss(make_trainer, make_model, rows):
    trainer = make_trainer(
        PruningConfig("soft_movement", penalty=7.0, warmup=0, cooldown=1),
        given={"model": make_model(**NO_DROPOUT)},
        max_steps=3,
        eval_steps=1,
    )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
    trainer.pruner.step()
    penalty = float(trainer.pruner.penalty().detach())
    assert penalty > 1
    trainer.model.train()
    with_penalty = float(trainer.compute_loss(trainer.model, batch).detach())
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert float(loss.detach()) == with_penalty
    plain = float(outputs["loss"].detach())
    assert with_penalty == pytest.approx(plain + penalty, rel=1e-6)
    trainer.model.eval()
    with torch.no_grad():
        assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(plain, rel=1e-6)
        expected = trainer.model(**trainer.data_collator(list(trainer.eval_dataset)))["loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_logged_loss_holds_the_penalty_of_that_step(make_trainer, make_model, history):
    settings = {"save_strategy": "no", "eval_strategy": "no", "learning_rate": 0.0}
    config = PruningConfig("soft_movement", penalty=4.0, score_lr=1e-12, density=0.5)
    trainer = make_trainer(config, given={"model": make_model(**NO_DROPOUT)}, **settings)
    expected = []
    own = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        expected.append(float(trainer.pruner.penalty().detach()))
        kwargs["return_outputs"] = True
        loss, outputs = own(*args, **kwargs)
        expected[-1] += float(outputs["loss"].detach())
        return loss

    trainer.compute_loss = compute_loss
    trainer.train()
    assert [line["loss"] for line in history(trainer)] == pytest.approx(expected, rel=1e-5)


def test_scores_train_at_their_own_rate_and_embeddings_stay(make_trainer, tensors):
    trainer = make_trainer(PruningConfig("movement", density=0.2, score_lr=0.5))
    before = tensors(trainer)
    trainer.train()
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {1e-2, 0.5}
    scores = {id(target.scores) for target in trainer.pruner.targets}
    (group,) = [group for group in trainer.optimizer.param_groups if group["initial_lr"] == 0.5]
    assert {id(parameter) for parameter in group["params"]} == scores
    assert group["weight_decay"] == 0
    after = tensors(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("_embeddings.weight" in name for name in changed)
    assert any(name.endswith("weight.0.scores") for name in changed)
    assert any(name.endswith("weight.original") for name in changed)


def test_an_optimizer_class_of_the_users_runs_over_the_pruners_groups(make_trainer):
    choice = (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.5})
    trainer = make_trainer(CONFIGS["movement"], given={"optimizer_cls_and_kwargs": choice})
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2, 3e-2}


def test_magnitude_takes_an_optimizer_built_before(make_trainer, make_model):
    model = make_model()  # it has no scores, and its weights are the same parameters
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = make_trainer(CONFIGS["magnitude"], given={"model": model, "optimizers": (optimizer, None)})
    before = trainer.pruner.targets[0].weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.pruner.targets[0].weight)


def test_steps_are_counted_in_optimizer_steps_from_the_epochs(make_trainer):
    trainer = make_trainer(
        CONFIGS["movement"], max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2
    )
    assert trainer.pruner.schedule.total == 9  # 48 rows, 16 a step
    trainer.train()
    assert trainer.state.global_step == trainer.pruner.steps_done == 9
    assert trainer.pruner.density == pytest.approx(0.2, abs=5e-3)


# -- logs and evaluation ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magnitude", "movement", "soft_movement", "l0"])
def test_logs_hold_density_threshold_and_lambda(make_trainer, name, history):
    trainer = make_trainer(CONFIGS[name])
    trainer.train()
    lines = history(trainer)
    training, evaluation = ([line for line in lines if kind in line] for kind in ("loss", "eval_loss"))
    assert len(training) == 12
    assert len(evaluation) == 6
    assert all("density" in line for line in lines)
    assert training[0]["density"] == 1.0
    assert training[-1]["density"] == evaluation[-1]["density"] == pytest.approx(0.2, abs=5e-3)
    densities = [line["density"] for line in training]
    assert densities == sorted(densities, reverse=True)
    assert "threshold" not in training[0]  # nothing is cut yet
    assert "threshold" in training[-1]
    assert all(("mask_changed" in line) == ("threshold" in line) for line in lines)
    moved = {line["step"]: line["mask_changed"] for line in training if "mask_changed" in line}
    assert max(moved.values()) > 0
    if name != "l0":  # whose closed gates are not the mask's
        for before, line in itertools.pairwise(training):  # what is cut, and what changes places
            assert moved.get(line["step"], 0) >= before["density"] - line["density"] - 1e-9
    takes_penalty = name in ("soft_movement", "l0")
    assert all(("lambda" in line, "penalty" in line) == (takes_penalty,) * 2 for line in lines)
    if takes_penalty:
        assert training[0]["lambda"] == 0
        assert any(line["lambda"] > 0 and line["penalty"] > 0 for line in training)


def test_a_dense_run_logs_what_a_trainer_logs(make_trainer, history):
    trainer = make_trainer(None)
    trainer.train()
    assert trainer.pruner is None
    assert set(history(trainer)[0]) == {"loss", "grad_norm", "learning_rate", "epoch", "step"}


def test_an_evaluation_sees_the_masks_of_its_moment(make_trainer, every, history):
    trainer = make_trainer(CONFIGS["movement"], eval_steps=1)
    wanted = {}

    def remember(step: int) -> None:  # runs after the pruner's step and before the evaluation
        trainer.model.eval()
        with torch.no_grad():
            batch = trainer.data_collator(list(trainer.eval_dataset))
            wanted[step] = (float(trainer.model(**batch)["loss"]), trainer.pruner.density)

    trainer.add_callback(every(remember))
    trainer.train()
    lines = [line for line in history(trainer) if "eval_loss" in line]
    assert [line["step"] for line in lines] == list(wanted)
    for line in lines:
        loss, density = wanted[line["step"]]
        assert line["eval_loss"] == pytest.approx(loss, rel=1e-4)
        assert line["density"] == density
        ramp = trainer.pruner.schedule.density(line["step"], 0.2)
        assert density == pytest.approx(ramp, abs=5e-3)


def test_bfloat16_autocast_trains_and_resumes(make_trainer, tmp_path, tensors, history, assert_same):
    whole = make_trainer(CONFIGS["movement"], bf16=True)
    whole.train()
    assert {value.dtype for value in tensors(whole).values()} <= {torch.float32, torch.bool, torch.int64}
    assert history(whole)[-1]["density"] == pytest.approx(0.2, abs=5e-3)
    resumed = make_trainer(CONFIGS["movement"], "other", bf16=True)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-8")
    assert_same(tensors(whole), tensors(resumed))
    whole.save_model(str(tmp_path / "model"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert summary(loaded).density == pytest.approx(0.2, abs=5e-3)


# -- what is written --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magnitude", "movement", "soft_movement", "l0"])
def test_save_model_writes_an_ordinary_folder_with_zeros(make_trainer, tmp_path, name, tensors, assert_same):
    trainer = make_trainer(CONFIGS[name])
    trainer.train()
    trainer.model.eval()
    batch = trainer.data_collator(list(trainer.eval_dataset))
    with torch.no_grad():
        expected = trainer.model(**batch).logits
    before, kept = tensors(trainer), summary(trainer.model).kept
    trainer.save_model(str(tmp_path / "model"))
    assert_same(before, tensors(trainer))
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    left = summary(model)
    assert left.density == pytest.approx(0.2, abs=5e-3)
    assert left.kept == kept
    assert left.parameters == sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).logits, expected)


def test_save_model_leaves_the_model_in_training(make_trainer, tmp_path, every, assert_same, tensors):
    settings = {"save_strategy": "no", "eval_strategy": "no"}
    plain = make_trainer(CONFIGS["l0"], **settings)
    plain.train()
    saving = make_trainer(CONFIGS["l0"], "other", **settings)
    saving.add_callback(every(lambda step: step == 6 and saving.save_model(str(tmp_path / "model"))))
    saving.train()
    assert_same(tensors(plain), tensors(saving))
    assert not hasattr(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "model"), "parametrizations"
    )


def test_save_model_of_a_dense_run_is_the_trainers(make_trainer, tmp_path, assert_same, tensors):
    trainer = make_trainer(None, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert_same(dict(model.state_dict()), tensors(trainer))


# -- the order of the data --------------------------------------------------------------------


def test_group_by_length_takes_the_sampler_that_resumes(make_trainer, rows):
    settings = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 4}
    trainer = make_trainer(None, gradient_accumulation_steps=2, **settings)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, GroupedByLength)
    assert sampler.lengths.tolist() == [len(ids) for ids in rows["input_ids"]]
    assert (sampler.batch, sampler.seed) == (8, 3)
    assert not isinstance(make_trainer(None)._get_train_sampler(), GroupedByLength)


@pytest.mark.parametrize("seed", [0, 11])
def test_group_by_length_follows_the_seed_of_the_data(make_trainer, seed):
    trainer = make_trainer(None, train_sampling_strategy="group_by_length", data_seed=seed)
    assert trainer._get_train_sampler().seed == seed


def test_evaluation_keeps_the_order_of_the_rows(make_trainer, rows):
    # Rows of rising and falling length: grouped by length they would come in another order.
    trainer = make_trainer(None, train_sampling_strategy="group_by_length")
    lengths = [len(ids) for ids in rows["input_ids"]]
    assert lengths != sorted(lengths)
    assert lengths != sorted(lengths, reverse=True)
    assert trainer.predict(rows).label_ids.tolist() == list(rows["labels"])
    assert list(trainer._get_eval_sampler(rows)) == list(range(len(rows)))


def test_one_process_trains_on_one_gpu(make_trainer, monkeypatch, caplog):
    made = TrainingArguments.__post_init__

    def post_init(self):
        made(self)
        self._n_gpu = 4  # as on a machine with four: the Trainer would take batches of 4 x 8

    monkeypatch.setattr(TrainingArguments, "__post_init__", post_init)
    trainer = make_trainer(PruningConfig("movement", density=0.25))
    assert trainer.args.n_gpu == 1
    assert len(next(iter(trainer.get_train_dataloader()))["input_ids"]) == 8
    assert "4 GPUs are visible" in caplog.text
    assert "torchrun --nproc-per-node 4" in caplog.text
    trainer.train()
    assert trainer.pruner.density == 0.25
