"""PruningTrainer: what it adds to the Trainer, and that a resumed run is the same run."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, TrainerCallback

from fineprune import FinepruneError, PruningConfig, prepare, summary
from fineprune.training import checkpoints
from fineprune.training.sampler import GroupedByLength

TIMING = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
CONFIGS = {
    "dense": None,
    "magnitude": PruningConfig("magnitude", density=0.2),
    "movement": PruningConfig("movement", density=0.2),
    "movement, global": PruningConfig("movement", density=0.2, scope="global"),
    "movement, masks every 3": PruningConfig("movement", density=0.2, mask_interval=3),
    "soft_movement": PruningConfig("soft_movement", density=0.2),
    "soft_movement, fixed": PruningConfig("soft_movement", penalty=5.0),
    "l0": PruningConfig("l0", density=0.2),
    "l0, fixed": PruningConfig("l0", penalty=5.0),
}


def history(trainer) -> list[dict[str, float]]:
    """The logs without times and without the closing line of the whole run."""
    return [
        {name: value for name, value in line.items() if name not in TIMING}
        for line in trainer.state.log_history
        if "train_runtime" not in line
    ]


def tensors(trainer) -> dict[str, torch.Tensor]:
    """Weights, scores, masks and offsets, copied."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Every(TrainerCallback):
    """Calls a function at the end of each step, after everything else of that step."""

    def __init__(self, function) -> None:
        self.function = function

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.function(state.global_step)


class StopAfter(TrainerCallback):
    """Raises out of the training loop, as an interrupt would, when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


# -- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "settings", [{}, {"train_sampling_strategy": "group_by_length"}], ids=["random", "grouped"]
)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(make_trainer, name, settings):
    whole = make_trainer(CONFIGS[name], **settings)
    whole.train()
    resumed = make_trainer(CONFIGS[name], "other", **settings)
    torch.rand(5)  # the state of the generator is the checkpoint's, not this process's
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)
    assert len(history(whole)) == 12 + 6


@pytest.mark.parametrize("step", [6, 8])  # 6 steps are an epoch
@pytest.mark.parametrize(
    "settings", [{}, {"train_sampling_strategy": "group_by_length"}], ids=["random", "grouped"]
)
def test_resume_in_and_at_the_start_of_the_second_epoch(make_trainer, step, settings):
    whole = make_trainer(CONFIGS["movement"], save_steps=2, **settings)
    whole.train()
    resumed = make_trainer(CONFIGS["movement"], "other", save_steps=2, **settings)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)


@pytest.mark.parametrize(
    "settings", [{}, {"train_sampling_strategy": "group_by_length"}], ids=["random", "grouped"]
)
def test_resume_under_accumulation_with_a_last_batch_that_is_short(make_trainer, rows, settings):
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4} | settings
    given = {
        "train_dataset": rows.select(range(43))
    }  # 11 batches, the last of 3: 6 steps, the last of one batch
    whole = make_trainer(CONFIGS["soft_movement"], given=given, **settings)
    whole.train()
    for step in (4, 8):
        resumed = make_trainer(CONFIGS["soft_movement"], f"from {step}", given=given, **settings)
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
        assert_same(tensors(whole), tensors(resumed))
        assert history(whole) == history(resumed)


def test_an_interrupted_run_resumes_in_its_own_folder(make_trainer):
    whole = make_trainer(CONFIGS["l0"], "whole")
    whole.train()
    stopped = make_trainer(CONFIGS["l0"], given={"callbacks": [StopAfter(7)]})
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = make_trainer(CONFIGS["l0"])
    resumed.train(resume_from_checkpoint=True)
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)


def test_the_pruner_of_a_resumed_run_goes_on_where_it_stood(make_trainer):
    whole = make_trainer(CONFIGS["soft_movement"])
    seen: dict[int, dict] = {}
    whole.add_callback(Every(lambda step: seen.update({step: whole.pruner.state_dict()})))
    whole.train()
    resumed = make_trainer(CONFIGS["soft_movement"], "other")
    resumed._load_from_checkpoint(f"{whole.args.output_dir}/checkpoint-8")
    assert resumed.pruner.state_dict() == seen[8]
    assert resumed.pruner.steps_done == 8
    assert resumed.pruner.lambda_ > 0


def test_training_does_not_change_with_checkpoints(make_trainer):
    often = make_trainer(CONFIGS["l0"], save_steps=1)
    often.train()
    never = make_trainer(CONFIGS["l0"], "other", save_strategy="no")
    never.train()
    assert_same(tensors(often), tensors(never))
    assert history(often) == history(never)


# -- loss -------------------------------------------------------------------------------------

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("name", ["dense", "magnitude", "movement", "soft_movement"])
def test_accumulating_two_batches_of_4_is_a_batch_of_8(make_trainer, make_model, name):
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


def test_the_logged_loss_holds_the_penalty_of_that_step(make_trainer, make_model):
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


def test_scores_train_at_their_own_rate_and_embeddings_stay(make_trainer):
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


# -- logs and evaluation ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magnitude", "movement", "soft_movement", "l0"])
def test_logs_hold_density_threshold_and_lambda(make_trainer, name):
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
    takes_penalty = name in ("soft_movement", "l0")
    assert all(("lambda" in line, "penalty" in line) == (takes_penalty,) * 2 for line in lines)
    if takes_penalty:
        assert training[0]["lambda"] == 0
        assert any(line["lambda"] > 0 and line["penalty"] > 0 for line in training)


def test_a_dense_run_logs_what_a_trainer_logs(make_trainer):
    trainer = make_trainer(None)
    trainer.train()
    assert trainer.pruner is None
    assert set(history(trainer)[0]) == {"loss", "grad_norm", "learning_rate", "epoch", "step"}


def test_an_evaluation_sees_the_masks_of_its_moment(make_trainer):
    trainer = make_trainer(CONFIGS["movement"], eval_steps=1)
    wanted = {}

    def remember(step: int) -> None:  # runs after the pruner's step and before the evaluation
        trainer.model.eval()
        with torch.no_grad():
            batch = trainer.data_collator(list(trainer.eval_dataset))
            wanted[step] = (float(trainer.model(**batch)["loss"]), trainer.pruner.density)

    trainer.add_callback(Every(remember))
    trainer.train()
    lines = [line for line in history(trainer) if "eval_loss" in line]
    assert [line["step"] for line in lines] == list(wanted)
    for line in lines:
        loss, density = wanted[line["step"]]
        assert line["eval_loss"] == pytest.approx(loss, rel=1e-4)
        assert line["density"] == density
        ramp = trainer.pruner.schedule.density(line["step"], 0.2)
        assert density == pytest.approx(ramp, abs=5e-3)


def test_bfloat16_autocast_trains_and_resumes(make_trainer, tmp_path):
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


# -- the best state ---------------------------------------------------------------------------


def score_by_step(values: dict[int, float]):
    """Makes `evaluate` report these values of `eval_score`, whatever the model."""

    def install(trainer):
        own = trainer.evaluation_loop

        def loop(*args, **kwargs):
            output = own(*args, **kwargs)
            output.metrics["eval_score"] = values.get(trainer.state.global_step, 0.0)
            return output

        trainer.evaluation_loop = loop

    return install


BEST = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "save_steps": 2,
    "save_total_limit": 1,
}


def test_only_states_at_the_final_density_compete(make_trainer):
    trainer = make_trainer(CONFIGS["movement"], **BEST)  # final from step 8 on
    score_by_step({2: 0.9, 4: 0.8, 6: 0.95, 8: 0.6, 10: 0.7, 12: 0.65})(trainer)
    states = {}
    trainer.add_callback(Every(lambda step: states.update({step: tensors(trainer)})))
    trainer.train()
    assert trainer.state.best_global_step == 10
    assert trainer.state.best_metric == 0.7
    assert trainer.state.best_model_checkpoint == f"{trainer.args.output_dir}/checkpoint-10"
    assert_same(states[10], tensors(trainer))
    assert trainer.pruner.density == pytest.approx(0.2, abs=5e-3)


def test_a_dense_run_keeps_its_best_state_from_the_start(make_trainer):
    trainer = make_trainer(None, **BEST)
    score_by_step({2: 0.9, 4: 0.8})(trainer)
    trainer.train()
    assert trainer.state.best_global_step == 2


def test_save_strategy_best_saves_at_the_final_density_only(make_trainer):
    settings = BEST | {"save_strategy": "best", "save_total_limit": None}
    trainer = make_trainer(CONFIGS["movement"], **settings)
    score_by_step({2: 0.1, 4: 0.2, 6: 0.3, 8: 0.6, 10: 0.5, 12: 0.65})(trainer)
    trainer.train()
    names = sorted(path.name for path in Path(trainer.args.output_dir).iterdir())
    assert names == ["checkpoint-12", "checkpoint-8"]


def test_the_best_state_survives_a_resume(make_trainer):
    scores = score_by_step({8: 0.8, 10: 0.7, 12: 0.65})
    stopped = make_trainer(CONFIGS["movement"], given={"callbacks": [StopAfter(11)]}, **BEST)
    scores(stopped)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    folder = Path(stopped.args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-10", "checkpoint-8"]
    resumed = make_trainer(CONFIGS["movement"], **BEST)
    scores(resumed)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-10"))
    assert resumed.state.best_global_step == 8
    whole = make_trainer(CONFIGS["movement"], "whole", **BEST)
    scores(whole)
    whole.train()
    assert_same(tensors(whole), tensors(resumed))


# -- what is written --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magnitude", "movement", "soft_movement", "l0"])
def test_save_model_writes_an_ordinary_folder_with_zeros(make_trainer, tmp_path, name):
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


def test_save_model_leaves_the_model_in_training(make_trainer, tmp_path):
    settings = {"save_strategy": "no", "eval_strategy": "no"}
    plain = make_trainer(CONFIGS["l0"], **settings)
    plain.train()
    saving = make_trainer(CONFIGS["l0"], "other", **settings)
    saving.add_callback(Every(lambda step: step == 6 and saving.save_model(str(tmp_path / "model"))))
    saving.train()
    assert_same(tensors(plain), tensors(saving))
    assert not hasattr(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "model"), "parametrizations"
    )


def test_save_model_of_a_dense_run_is_the_trainers(make_trainer, tmp_path):
    trainer = make_trainer(None, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert_same(dict(model.state_dict()), tensors(trainer))


def test_checkpoints_are_whole_and_rotated_by_number(make_trainer):
    trainer = make_trainer(CONFIGS["movement"], save_steps=1, save_total_limit=2)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-11", "checkpoint-12"]
    assert trainer.args.save_total_limit == 2
    state = checkpoints.verify(folder / "checkpoint-12")
    assert state == trainer.pruner.state_dict()
    assert state["steps_done"] == 12


def test_a_failed_write_leaves_the_earlier_checkpoints_alone(make_trainer, monkeypatch):
    trainer = make_trainer(CONFIGS["movement"])
    seal = checkpoints.seal

    def full_disk(folder, state):
        if folder.name == "checkpoint-8":
            raise OSError(28, "No space left on device")
        seal(folder, state)

    monkeypatch.setattr(checkpoints, "seal", full_disk)
    with pytest.raises(OSError, match="No space"):
        trainer.train()
    folder = Path(trainer.args.output_dir)
    assert not (folder / "checkpoint-8").exists()
    checkpoints.verify(folder / "checkpoint-4")
    monkeypatch.setattr(checkpoints, "seal", seal)
    resumed = make_trainer(CONFIGS["movement"])
    resumed.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]


# -- errors -----------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[FinepruneError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_an_optimizer_built_before_the_scores_is_refused(make_trainer, make_model):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(FinepruneError) as error:
        make_trainer(CONFIGS["movement"], given={"model": model, "optimizers": (optimizer, None)})
    one_line(error, "optimizer was built before", "parameter_groups")


def test_magnitude_takes_an_optimizer_built_before(make_trainer, make_model):
    model = make_model()  # it has no scores, and its weights are the same parameters
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = make_trainer(CONFIGS["magnitude"], given={"model": model, "optimizers": (optimizer, None)})
    before = trainer.pruner.targets[0].weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.pruner.targets[0].weight)


@pytest.mark.parametrize("wrong", [{"density": 0.1}, 0.1, "movement", PruningConfig])
def test_pruning_of_a_wrong_type_is_refused(make_trainer, wrong):
    with pytest.raises(FinepruneError) as error:
        make_trainer(wrong)
    one_line(error, "pruning=", "PruningConfig")


def test_too_few_steps_fail_in_the_constructor(make_trainer, make_model):
    model = make_model()
    with pytest.raises(FinepruneError) as error:
        make_trainer(PruningConfig("movement", warmup=8, cooldown=4), given={"model": model})
    one_line(error, "total_steps=12", "at least 13 steps")
    assert summary(model).density == 1.0
    prepare(model, CONFIGS["movement"], 12)  # nothing was put on it


def test_steps_are_counted_in_optimiser_steps_from_the_epochs(make_trainer):
    trainer = make_trainer(
        CONFIGS["movement"], max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2
    )
    assert trainer.pruner.schedule.total == 9  # 48 rows, 16 a step
    trainer.train()
    assert trainer.state.global_step == trainer.pruner.steps_done == 9
    assert trainer.pruner.density == pytest.approx(0.2, abs=5e-3)


def test_model_init_cannot_be_combined_with_pruning(make_trainer, make_model):
    with pytest.raises(FinepruneError) as error:
        make_trainer(CONFIGS["movement"], given={"model_init": lambda: make_model()})
    one_line(error, "model_init")


def test_a_prepared_model_is_refused(make_trainer, make_model):
    model = make_model()
    prepare(model, CONFIGS["movement"], 12)
    with pytest.raises(FinepruneError) as error:
        make_trainer(CONFIGS["movement"], given={"model": model})
    one_line(error, "prepared already")


def test_train_called_twice_is_refused(make_trainer):
    trainer = make_trainer(CONFIGS["movement"])
    trainer.train()
    before = tensors(trainer)
    with pytest.raises(FinepruneError) as error:
        trainer.train()
    one_line(error, "step 12", "again")
    assert_same(before, tensors(trainer))


def test_train_again_from_a_checkpoint_repeats_what_followed_it(make_trainer):
    trainer = make_trainer(CONFIGS["l0"])
    trainer.train()
    before, lines = tensors(trainer), history(trainer)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-4")
    assert_same(before, tensors(trainer))
    assert history(trainer) == lines


def test_arguments_changed_after_the_trainer_was_made_are_noticed(make_trainer):
    trainer = make_trainer(CONFIGS["movement"])
    trainer.args.max_steps = 20
    with pytest.raises(FinepruneError) as error:
        trainer.train()
    one_line(error, "takes 20 steps", "over 12")


@pytest.fixture
def checkpoint(make_trainer) -> Path:
    """checkpoint-4 of a movement run."""
    trainer = make_trainer(CONFIGS["movement"], given={"callbacks": [StopAfter(5)]})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return Path(trainer.args.output_dir) / "checkpoint-4"


@pytest.mark.parametrize(
    ("other", "settings", "parts"),
    [
        (PruningConfig("movement", density=0.3), {}, ["density: saved 0.2, now 0.3"]),
        (PruningConfig("soft_movement", density=0.2), {}, ["method: saved 'movement', now 'soft_movement'"]),
        (CONFIGS["movement"], {"max_steps": 16}, ["total_steps: saved 12, now 16"]),
        (None, {}, ["a pruning run's checkpoint; this run is dense"]),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(make_trainer, checkpoint, other, settings, parts):
    trainer = make_trainer(other, "other", **settings)
    before = tensors(trainer)
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    one_line(error, *parts)
    assert_same(before, tensors(trainer))


def test_a_dense_checkpoint_is_refused_by_a_pruning_run(make_trainer):
    dense = make_trainer(None, max_steps=4)
    dense.train()
    trainer = make_trainer(CONFIGS["movement"], "other")
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=f"{dense.args.output_dir}/checkpoint-4")
    one_line(error, "a dense run's checkpoint; this run is a pruning run")


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "config.json",
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_file_is_one_line(make_trainer, checkpoint, name, damage):
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    trainer = make_trainer(CONFIGS["movement"], "other")
    before = tensors(trainer)
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    one_line(error, str(checkpoint), "broken checkpoint", name)
    assert_same(before, tensors(trainer))


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]", b'{"files": {}}'])
def test_a_damaged_manifest_is_one_line(make_trainer, checkpoint, content):
    path = checkpoint / checkpoints.MANIFEST
    path.unlink() if content is None else path.write_bytes(content)
    trainer = make_trainer(CONFIGS["movement"], "other")
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    one_line(error, str(checkpoint), checkpoints.MANIFEST)


def test_a_checkpoint_that_is_not_there_is_one_line(make_trainer, checkpoint):
    shutil.rmtree(checkpoint)
    trainer = make_trainer(CONFIGS["movement"], "other")
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    one_line(error, "checkpoint-4")


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
