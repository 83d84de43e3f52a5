"""PruningTrainer's checkpoints: a resumed run is the same run, and the best state is the pruned one's."""

from itertools import cycle
from pathlib import Path

import pytest
import torch

from fineprune import FinepruneError, PruningConfig
from fineprune.training.host import sealing

CONFIGS = {
    "dense": None,
    "magnitude": PruningConfig("magnitude", density=0.2),
    "movement": PruningConfig("movement", density=0.2),
    "movement, global": PruningConfig("movement", density=0.2, scope="global"),
    "movement, masks every 3": PruningConfig("movement", density=0.2, mask_interval=3),
    "movement, sgd": PruningConfig("movement", density=0.2, score_optimizer="sgd"),
    "soft_movement": PruningConfig("soft_movement", density=0.2),
    "soft_movement, adam_bf16": PruningConfig("soft_movement", density=0.2, score_optimizer="adam_bf16"),
    "soft_movement, fixed": PruningConfig("soft_movement", penalty=5.0),
    "l0": PruningConfig("l0", density=0.2),
    "l0, fixed": PruningConfig("l0", penalty=5.0),
    "st3": PruningConfig("st3", density=0.2),
    "powerprop": PruningConfig("powerprop", density=0.2),
}
GROUPED = {"train_sampling_strategy": "group_by_length"}


# -- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), list(zip(CONFIGS, cycle([{}, GROUPED]), strict=False)))
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    make_trainer, name, settings, assert_same, tensors, history
):
    whole = make_trainer(CONFIGS[name], **settings)
    whole.train()
    resumed = make_trainer(CONFIGS[name], "other", **settings)
    torch.rand(5)  # the state of the generator is the checkpoint's, not this process's
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)
    assert len(history(whole)) == 12 + 6


@pytest.mark.parametrize("teacher", [False, True])
def test_means_of_the_log_go_on_over_a_checkpoint_between_two_lines(
    make_trainer, make_model, teacher, assert_same, tensors, history
):
    def trainer(folder):
        given = {"teacher": make_model(hidden_dropout_prob=0.0)} if teacher else {}
        return make_trainer(CONFIGS["movement"], folder, given=given, logging_steps=5, eval_strategy="no")

    whole, resumed = trainer("out"), trainer("other")
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-8")
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)
    assert [line["step"] for line in history(whole)] == [5, 10]  # of the steps 6 to 10, two came after it
    assert ("distillation" in history(whole)[1]) == teacher
    of_all, of_the_rest = (trainer.state.log_history[-1]["train_loss"] for trainer in (whole, resumed))
    losses = [line["loss"] for line in history(whole)]
    assert min(losses) / 2 < of_all < max(losses) * 2
    assert of_the_rest < 2 * max(losses)  # the mean over the steps 9 to 12, without those of 6 to 8


@pytest.mark.parametrize("step", [6, 8])  # 6 steps are an epoch
@pytest.mark.parametrize("settings", [{}, GROUPED], ids=["random", "grouped"])
def test_resume_in_and_at_the_start_of_the_second_epoch(
    make_trainer, step, settings, assert_same, tensors, history
):
    whole = make_trainer(CONFIGS["movement"], save_steps=2, **settings)
    whole.train()
    resumed = make_trainer(CONFIGS["movement"], "other", save_steps=2, **settings)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)


@pytest.mark.parametrize("settings", [{}, GROUPED], ids=["random", "grouped"])
def test_resume_under_accumulation_with_a_last_batch_that_is_short(
    make_trainer, rows, settings, assert_same, tensors, history
):
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


def test_an_interrupted_run_resumes_in_its_own_folder(
    make_trainer, stop_after, assert_same, tensors, history
):
    whole = make_trainer(CONFIGS["l0"], "whole")
    whole.train()
    stopped = make_trainer(CONFIGS["l0"], given={"callbacks": [stop_after(7)]})
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = make_trainer(CONFIGS["l0"])
    resumed.train(resume_from_checkpoint=True)
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)


def test_the_pruner_of_a_resumed_run_goes_on_where_it_stood(make_trainer, every):
    whole = make_trainer(CONFIGS["soft_movement"])
    seen: dict[int, dict] = {}
    whole.add_callback(every(lambda step: seen.update({step: whole.pruner.state_dict()})))
    whole.train()
    resumed = make_trainer(CONFIGS["soft_movement"], "other")
    resumed._load_from_checkpoint(f"{whole.args.output_dir}/checkpoint-8")
    assert resumed.pruner.state_dict() == seen[8]
    assert resumed.pruner.steps_done == 8
    assert resumed.pruner.lambda_ > 0


def test_training_does_not_change_with_checkpoints(make_trainer, assert_same, tensors, history):
    often = make_trainer(CONFIGS["l0"], save_steps=1)
    often.train()
    never = make_trainer(CONFIGS["l0"], "other", save_strategy="no")
    never.train()
    assert_same(tensors(often), tensors(never))
    assert history(often) == history(never)


def test_train_again_from_a_checkpoint_repeats_what_followed_it(make_trainer, tensors, history, assert_same):
    trainer = make_trainer(CONFIGS["l0"])
    trainer.train()
    before, lines = tensors(trainer), history(trainer)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-4")
    assert_same(before, tensors(trainer))
    assert history(trainer) == lines


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


def test_only_states_at_the_final_density_compete(make_trainer, every, tensors, assert_same):
    trainer = make_trainer(CONFIGS["movement"], **BEST)  # final from step 8 on
    score_by_step({2: 0.9, 4: 0.8, 6: 0.95, 8: 0.6, 10: 0.7, 12: 0.65})(trainer)
    states = {}
    trainer.add_callback(every(lambda step: states.update({step: tensors(trainer)})))
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


def test_the_best_state_survives_a_resume(make_trainer, stop_after, assert_same, tensors):
    scores = score_by_step({8: 0.8, 10: 0.7, 12: 0.65})
    stopped = make_trainer(CONFIGS["movement"], given={"callbacks": [stop_after(11)]}, **BEST)
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


def test_checkpoints_are_whole_and_rotated_by_number(make_trainer):
    trainer = make_trainer(CONFIGS["movement"], save_steps=1, save_total_limit=2)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-11", "checkpoint-12"]
    assert trainer.args.save_total_limit == 2
    state = sealing.verify(folder / "checkpoint-12")
    assert state == trainer.pruner.state_dict()
    assert state["steps_done"] == 12


def test_a_failed_write_leaves_the_earlier_checkpoints_alone(make_trainer, monkeypatch):
    trainer = make_trainer(CONFIGS["movement"])
    seal = sealing.seal

    def full_disk(folder, state, run):
        if folder.name == "checkpoint-8":
            raise OSError(28, "No space left on device")
        seal(folder, state, run)

    monkeypatch.setattr(sealing, "seal", full_disk)
    with pytest.raises(
        FinepruneError, match=r"-8: cannot be written \(.*No space left on device.*make room.*checkpoint-4$"
    ):
        trainer.train()
    folder = Path(trainer.args.output_dir)
    assert not (folder / ".writing").exists()
    assert not (folder / "checkpoint-8").exists()
    sealing.verify(folder / "checkpoint-4")
    monkeypatch.setattr(sealing, "seal", seal)
    resumed = make_trainer(CONFIGS["movement"])
    resumed.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]
