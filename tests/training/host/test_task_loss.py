"""The loss of the task in the log, beside what a teacher and a penalty make of it."""

import pytest

from fineprune import Distillation, PruningConfig

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def lines_of(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def test_the_parts_of_the_loss_add_up(make_trainer, make_model, teacher):
    given = {"model": make_model(**NO_DROPOUT), "teacher": teacher, "distillation": Distillation(0.3, 2.0)}
    pruning = PruningConfig("soft_movement", penalty=7.0, warmup=0, cooldown=1)
    trainer = make_trainer(pruning, given=given, max_steps=4, logging_steps=1)
    trainer.train()
    lines = lines_of(trainer)
    assert len(lines) == 4
    for line in lines:
        assert line["loss"] == pytest.approx(
            0.7 * line["task_loss"] + 0.3 * line["distillation"] + line["penalty"], rel=1e-4
        )
    assert lines[0]["penalty"] == 0  # nothing is pruned before the first step
    assert all(line["task_loss"] < 1 < line["penalty"] for line in lines[1:])


def test_accumulated_batches_count_as_one_step(make_trainer, make_model):
    lines = []
    for batch, accumulation in ((8, 1), (4, 2)):
        trainer = make_trainer(
            PruningConfig("soft_movement", penalty=2.0),
            f"{batch}",
            given={"model": make_model(**NO_DROPOUT)},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=4,
        )
        trainer.train()
        lines.append([line["task_loss"] for line in lines_of(trainer)])
    assert lines[0] == pytest.approx(lines[1], rel=1e-4)


def test_a_loss_without_parts_is_logged_once(make_trainer):
    trainer = make_trainer(PruningConfig("movement"), max_steps=2)
    trainer.train()
    assert not any("task_loss" in line for line in trainer.state.log_history)
