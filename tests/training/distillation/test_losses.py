"""The distillation losses by hand, and a trainer with a teacher: its loss, its logs, what it leaves alone."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from fineprune import Distillation, FinepruneError, PruningConfig
from fineprune.training.distillation.losses import (
    answers,
    distillation_loss,
    divergence,
    head_of,
    span_divergence,
    squared_error,
    token_divergence,
)

TIMING = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MOVEMENT = PruningConfig("movement", density=0.2)
LN3 = math.log(3)
EVEN, SURE = [0.0, 0.0], [0.0, LN3]  # softmax: (1/2, 1/2) and (1/4, 3/4)
KL = 0.130812  # of SURE from EVEN: 1/4 · ln(1/4 / 1/2) + 3/4 · ln(3/4 / 1/2) = -0.173287 + 0.304099


def history(trainer) -> list[dict[str, float]]:
    """The logs without times and without the closing line of the whole run."""
    return [
        {name: value for name, value in line.items() if name not in TIMING}
        for line in trainer.state.log_history
        if "train_runtime" not in line
    ]


def tensors(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture
def teacher(make_model):
    """Other weights than the student's; with dropout in its config, as a real teacher."""
    torch.manual_seed(8)
    return BertForSequenceClassification(make_model().config)


# -- the settings -----------------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    assert Distillation().to_dict() == {"alpha": 0.9, "temperature": 2.0}
    assert Distillation.from_dict({"alpha": 1, "temperature": 4}) == Distillation(1.0, 4.0)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": "all"}, "alpha='all'"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"temperature": 0}, "temperature=0.0"),
        ({"temperature": True}, "temperature=True"),
        ({"temprature": 2}, "did you mean temperature"),
    ],
)
def test_wrong_settings_are_refused(values, part):
    with pytest.raises(FinepruneError, match=part):
        Distillation.from_dict(values)


# -- the losses -------------------------------------------------------------------------------


def test_texts_by_hand():
    student, teacher = torch.tensor([EVEN, EVEN]), torch.tensor([SURE, EVEN])
    assert divergence(student, teacher, 1.0).tolist() == pytest.approx([KL, 0], abs=1e-6)
    assert float(distillation_loss("texts", student, teacher, 1.0)) == pytest.approx(KL / 2, abs=1e-6)
    # Twice the logits at twice the temperature are the same probabilities, and T² = 4.
    assert float(distillation_loss("texts", student, 2 * teacher, 2.0)) == pytest.approx(2 * KL, abs=1e-5)


def test_spans_by_hand():
    """The first row is SURE of its start and EVEN about its end, the second agrees; a third is padding."""
    student = torch.zeros(2, 3, 2)
    teacher = torch.zeros(2, 3, 2)
    teacher[0, :2, 0] = torch.tensor(SURE)
    teacher[:, 2], student[:, 2] = 50.0, -7.0
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    # Mean of start (KL / 2, 0 in the second row) and end (0, 0).
    assert float(span_divergence(student, teacher, 1.0, mask)) == pytest.approx(KL / 4, abs=1e-6)
    assert float(span_divergence(student[:, :2], teacher[:, :2], 1.0)) == pytest.approx(KL / 4, abs=1e-6)


def test_tokens_by_hand():
    student = torch.tensor([[EVEN, EVEN, [9.0, 1.0]], [EVEN, SURE, SURE]])
    teacher = torch.tensor([[SURE, EVEN, SURE], [EVEN, EVEN, SURE]])
    labels = torch.tensor([[1, 0, -100], [0, -100, 1]])
    # Four tokens are labeled, and one of them differs.
    assert float(token_divergence(student, teacher, 1.0, labels)) == pytest.approx(KL / 4, abs=1e-6)
    nothing = torch.full((2, 3), -100)
    assert float(token_divergence(student, teacher, 1.0, nothing)) == 0


def test_values_by_hand():
    """Errors of 1 and 2: (1 + 4) / 2, whatever the temperature."""
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    assert float(squared_error(student, teacher)) == 2.5
    assert float(distillation_loss("values", student, teacher, 7.0)) == 2.5


def test_the_gradient_is_that_of_the_paper():
    """Eq. 2, times T²: T · (q − p) = 2 · (1/2 − 1/4, 1/2 − 3/4); the teacher has none."""
    student = torch.tensor([EVEN], requires_grad=True)
    teacher = torch.tensor([[0.0, 2 * LN3]], requires_grad=True)
    distillation_loss("texts", student, teacher, 2.0).backward()
    assert student.grad.tolist() == [pytest.approx([0.5, -0.5], abs=1e-6)]
    assert teacher.grad is None


def test_padding_and_unlabeled_tokens_get_no_gradient():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 4, 2, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 4, 2, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    for loss in (
        span_divergence(student, teacher, 0.1, mask),
        token_divergence(student, teacher, 2.0, mask * 101 - 100),
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(gradient).all()
        assert (gradient[mask == 0] == 0).all()
        assert (gradient[0, :3] != 0).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0, 20.0]), st.floats(-30, 30))
def test_a_student_like_its_teacher_loses_nothing(seed, temperature, shift):
    generator = torch.Generator().manual_seed(seed)
    logits, others = torch.randn(2, 3, 5, 2, generator=generator) * 3
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    for head in ("texts", "tokens", "spans"):

        def loss(student, teacher, head=head):
            return float(distillation_loss(head, student, teacher, temperature, mask, mask - 1))

        assert loss(logits, logits) == 0
        assert loss(logits + shift, logits) == pytest.approx(0, abs=1e-2)  # T² · noise
        assert loss(others, logits) > 0


def test_at_high_temperature_it_is_half_the_mean_squared_error():
    """Eq. 4 of the paper, for logits of mean 0: here (1 + 0 + 1) / 3 / 2."""
    student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, -1.0]])
    assert float(divergence(student, teacher, 100.0)) == pytest.approx(1 / 3, rel=1e-2)


def test_heads_are_known_by_the_class(make_model):
    class Mine(BertForSequenceClassification):
        pass

    assert head_of(make_model()) == head_of(Mine(make_model().config)) == "texts"
    assert head_of(make_model(num_labels=1)) == "values"
    assert head_of(make_model().bert) is None
    with pytest.raises(FinepruneError, match="return_dict"):
        answers((torch.zeros(1),))


# -- the trainer ------------------------------------------------------------------------------


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


def test_the_log_has_the_mean_distillation_since_the_last_line(make_trainer, make_model, teacher):
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


def test_alpha_1_and_a_teacher_like_the_student_leave_no_loss(make_trainer, make_model):
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
def test_accumulating_two_batches_of_4_is_a_batch_of_8(make_trainer, make_model, teacher, own):
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
@pytest.mark.parametrize("kept", [False, True], ids=["live", "kept"])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(make_trainer, teacher, tmp_path, pruning, kept):
    given = {"teacher": teacher, "teacher_logits": tmp_path / "logits" if kept else None}
    whole = make_trainer(pruning, given=given)
    whole.train()
    resumed = make_trainer(pruning, "other", given=given)
    torch.rand(5)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)


def test_the_teacher_is_left_as_it_was(make_trainer, teacher, tmp_path):
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
    trainer.save_model(str(tmp_path / "model"))
    assert "eval_loss" in scores
    assert "distillation" not in scores


def test_bfloat16_autocast(make_trainer, teacher):
    trainer = make_trainer(MOVEMENT, given={"teacher": teacher}, bf16=True)
    trainer.train()
    assert all(math.isfinite(line["distillation"]) for line in history(trainer) if "loss" in line)
    assert {value.dtype for value in teacher.state_dict().values()} <= {torch.float32, torch.int64}
