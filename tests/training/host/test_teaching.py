"""A trainer with a teacher: its loss, its logs, what it leaves alone."""

import math
from pathlib import Path

import pytest
import torch
from transformers import default_data_collator

from fineprune import Distillation, FinepruneError, FinepruneWarning, PruningConfig
from fineprune.training.distillation.losses import divergence, hidden_distance
from fineprune.training.host.teaching import unseen

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MOVEMENT = PruningConfig("movement", density=0.2)


@pytest.mark.parametrize("pruning", [None, PruningConfig("soft_movement", penalty=7.0, warmup=0, cooldown=1)])
def test_the_loss_is_mixed_and_the_penalty_comes_on_top(make_trainer, make_model, teacher, pruning):
    given = {"model": make_model(**NO_DROPOUT), "teacher": teacher, "distillation": Distillation(0.3, 3.0)}
    trainer = make_trainer(pruning, given=given, max_steps=3)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
    penalty = 0.0
    if trainer.pruner is not None:
        trainer.pruner.step()
        penalty = float(trainer.pruner.penalty().detach())
        assert penalty > 1
    with torch.no_grad():
        outputs = trainer.model.eval()(**batch)
        distilled = divergence(outputs.logits, teacher(**batch).logits, 3.0).mean()
    trainer.model.train()
    loss, theirs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    expected = 0.3 * float(distilled) + 0.7 * float(outputs.loss) + penalty
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(trainer.compute_loss(trainer.model, batch).detach()) == float(loss.detach())
    assert float(theirs["loss"].detach()) == pytest.approx(float(outputs.loss), rel=1e-5)
    trainer.model.eval()
    assert float(trainer.compute_loss(trainer.model, batch).detach()) == pytest.approx(
        float(outputs.loss), rel=1e-6
    )


def test_rows_in_a_list_that_have_no_input_ids(make_trainer, make_model, teacher):
    embeds = torch.randn(8, 3, make_model().config.hidden_size)
    rows = [{"inputs_embeds": row, "labels": index % 2} for index, row in enumerate(embeds)]
    given = {"teacher": teacher, "train_dataset": rows, "eval_dataset": rows}
    trainer = make_trainer(None, given={**given, "data_collator": default_data_collator}, max_steps=2)
    trainer.train()
    assert "distillation" in trainer.state.log_history[0]


def test_weights_need_not_add_up_and_hidden_states_are_compared(make_trainer, make_model, teacher, history):
    config = Distillation(2.0, 3.0, task=0.5, hidden=0.25)
    given = {"model": make_model(**NO_DROPOUT), "teacher": teacher, "distillation": config}
    trainer = make_trainer(MOVEMENT, given=given, max_steps=3)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
    with torch.no_grad():
        own, other = (model(**batch, output_hidden_states=True) for model in (trainer.model.eval(), teacher))
        distilled = divergence(own.logits, other.logits, 3.0).mean()
        distance = hidden_distance(own.hidden_states[1:], other.hidden_states[1:], batch["attention_mask"])
    assert float(distance) > 0
    loss = trainer.compute_loss(trainer.model.train(), batch)
    expected = 0.5 * float(own.loss) + 2.0 * float(distilled) + 0.25 * float(distance)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    trainer.train()
    logged = [line for line in history(trainer) if "loss" in line]
    for line in logged[1:]:  # the first also counts the loss above
        parts = 0.5 * line["task_loss"] + 2.0 * line["distillation"] + 0.25 * line["hidden"]
        assert line["loss"] == pytest.approx(parts, rel=1e-3)
    assert not any("hidden" in line for line in history(trainer) if "eval_loss" in line)


def test_scores_do_not_see_hidden_states_that_are_kept_apart(make_trainer, make_model, teacher):
    def gradients(**settings):
        config = Distillation(0.5, **settings)
        given = {"model": make_model(**NO_DROPOUT), "teacher": teacher, "distillation": config}
        trainer = make_trainer(PruningConfig("movement", density=0.2, warmup=0), given=given, max_steps=3)
        trainer.pruner.step()
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
        loss = trainer.compute_loss(trainer.model.train(), batch)
        loss.backward()
        found = [(target.scores.grad, target.weight.grad) for target in trainer.pruner.targets]
        return float(loss.detach()), *zip(*found, strict=True)

    _, without, _ = gradients()
    value, scores, weights = gradients(hidden=0.5)
    apart, seen, moved = gradients(hidden=0.5, separate=True)
    assert apart == pytest.approx(value)
    torch.testing.assert_close(seen, without)
    torch.testing.assert_close(moved, weights)
    assert not torch.allclose(scores[0], without[0])


def test_a_term_that_reaches_no_score_is_kept_apart_from_none():
    scores, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    assert unseen(other.sum(), [scores]) == 0  # as where the blocks between them are the teacher's
    assert unseen(torch.tensor(3.0), [scores]) == 0
    apart = unseen((scores * other).sum(), [scores])
    apart.backward()
    assert apart == 0
    assert scores.grad.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("change", "differing"),
    [({"num_hidden_layers": 1}, "has 1 layers"), ({"hidden_size": 64}, "has 64 hidden units")],
)
def test_a_teacher_of_another_size_has_other_hidden_states(make_trainer, make_model, change, differing):
    given = {"teacher": make_model(**change), "distillation": Distillation(hidden=1.0)}
    with pytest.raises(FinepruneError, match=f"teacher: {differing}, .* leave distillation's hidden out"):
        make_trainer(MOVEMENT, given=given)


def test_hidden_states_are_not_stored(make_trainer, teacher, tmp_path):
    given = {"teacher": teacher, "distillation": Distillation(hidden=1.0), "teacher_logits": tmp_path}
    with pytest.raises(FinepruneError, match=r"teacher_logits: hidden=1 needs the teacher's hidden states"):
        make_trainer(MOVEMENT, given=given)


def test_the_log_has_the_mean_distillation_since_the_last_line(make_trainer, make_model, teacher, history):
    lines = []
    for every in (1, 2):
        given = {"model": make_model(**NO_DROPOUT), "teacher": teacher}
        trainer = make_trainer(MOVEMENT, f"{every}", given=given, logging_steps=every)
        trainer.train()
        lines.append([line for line in history(trainer) if "loss" in line])
        assert not any("distillation" in line for line in history(trainer) if "eval_loss" in line)
    single, double = ([line["distillation"] for line in some] for some in lines)
    assert (len(single), len(double)) == (12, 6)
    means = [(one + two) / 2 for one, two in zip(single[::2], single[1::2], strict=True)]
    assert double == pytest.approx(means, rel=1e-5)
    assert all(line["distillation"] > 0 and "density" in line for line in lines[0])


def test_alpha_1_and_a_teacher_like_the_student_leave_no_loss(make_trainer, make_model, history):
    given = {"model": make_model(**NO_DROPOUT), "teacher": make_model(), "distillation": Distillation(1.0)}
    trainer = make_trainer(None, given=given, max_steps=3, optim="sgd", weight_decay=0.0)
    trainer.train()
    lines = [line for line in history(trainer) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx([0.0] * 3, abs=1e-6)
    assert [line["distillation"] for line in lines] == pytest.approx([0.0] * 3, abs=1e-6)


def mean_loss(outputs, labels, num_items_in_batch=None):
    """As a user of `compute_loss_func` writes it: the sum over the items of the whole step."""
    total = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize("own", [{}, {"compute_loss_func": mean_loss}], ids=["loss", "loss of the user's"])
def test_accumulating_two_batches_of_4_is_a_batch_of_8(
    make_trainer, make_model, teacher, own, history, tensors
):
    trainers = []
    for batch, accumulation in ((8, 1), (4, 2)):
        given = {"model": make_model(**NO_DROPOUT), "teacher": teacher, **own}
        trainer = make_trainer(
            PruningConfig("soft_movement", penalty=2.0),
            f"{batch}",
            given=given,
            optim="sgd",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            save_strategy="no",
            eval_strategy="no",
        )
        trainer.train()
        trainers.append(trainer)
    for ours, theirs in zip(*(history(trainer) for trainer in trainers), strict=True):
        if own:  # what the Trainer logs under accumulation is its own affair; the rest must agree
            ours.pop("loss"), theirs.pop("loss")
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    one, two = map(tensors, trainers)
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pruning", [None, MOVEMENT, PruningConfig("l0", density=0.2)])
@pytest.mark.parametrize("way", ["live", "kept", "hidden"])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    make_trainer, teacher, tmp_path, pruning, way, history, tensors, assert_same
):
    given = {"teacher": teacher, "teacher_logits": tmp_path / "logits" if way == "kept" else None}
    given["distillation"] = Distillation(hidden=1.0 if way == "hidden" else 0.0)
    whole = make_trainer(pruning, given=given)
    whole.train()
    resumed = make_trainer(pruning, "other", given=given)
    torch.rand(5)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)


def test_the_teacher_is_left_as_it_was(make_trainer, teacher, tmp_path, assert_same):
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = make_trainer(MOVEMENT, given={"teacher": teacher})
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    trainer.train()
    assert not teacher.training
    assert_same(before, dict(teacher.state_dict()))
    frozen = {id(parameter) for parameter in teacher.parameters()}
    assert not any(
        id(entry) in frozen for group in trainer.optimizer.param_groups for entry in group["params"]
    )
    plain = make_trainer(MOVEMENT, "plain")
    plain.train()
    sizes = [
        {
            path.name: path.stat().st_size
            for path in Path(one.args.output_dir, "checkpoint-12").glob("*.safe*")
        }
        for one in (trainer, plain)
    ]
    assert sizes[0] == sizes[1]


def test_evaluating_and_saving_do_not_ask_the_teacher(make_trainer, teacher, tmp_path):
    trainer = make_trainer(MOVEMENT, given={"teacher": teacher})

    def refuse(*args, **kwargs):
        raise AssertionError("the teacher was asked")

    teacher.forward = refuse  # also fails a deep copy that is asked
    scores = trainer.evaluate()
    with pytest.warns(FinepruneWarning, match="pruning is at step 0 of 12"):
        trainer.save_model(str(tmp_path / "model"))
    assert "eval_loss" in scores
    assert "distillation" not in scores


def test_bfloat16_autocast(make_trainer, teacher, history):
    trainer = make_trainer(MOVEMENT, given={"teacher": teacher}, bf16=True)
    trainer.train()
    assert all(math.isfinite(line["distillation"]) for line in history(trainer) if "loss" in line)
    assert {value.dtype for value in teacher.state_dict().values()} <= {torch.float32, torch.int64}
