"""The distillation losses by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fineprune import Distillation, FinepruneError, PruningConfig
from fineprune.training.distillation.losses import (
    distillation_loss,
    divergence,
    hidden_distance,
    next_token_divergence,
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


# -- the settings -----------------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    extensions = {"hidden": 0.0, "similarity": 0.0, "layers": "same", "separate": False}
    extensions |= {"graft": None, "graft_until": 0.5}
    assert Distillation().to_dict() == {"alpha": 0.9, "temperature": 2.0, "task": None, **extensions}
    assert Distillation.from_dict({"alpha": 1, "temperature": 4}) == Distillation(1.0, 4.0)


def test_the_labels_have_the_rest_unless_their_weight_is_given():
    assert Distillation(alpha=0.75).task_weight == 0.25
    assert Distillation(alpha=2.7, task=0.3).task_weight == 0.3


def test_pairs_of_layers_are_saved():
    config = Distillation(hidden=1.0, layers=[[1, 2], [0, 0]], separate=True)
    assert config.layers == ((1, 2), (0, 0))
    assert config.to_dict()["layers"] == [[1, 2], [0, 0]]
    assert Distillation.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": -0.1, "task": 1}, "alpha=-0.1: a weight of the loss must be at least 0"),
        ({"task": -1}, "task=-1.0: a weight"),
        ({"task": True}, "task=True"),
        ({"hidden": -1}, "hidden=-1.0: a weight"),
        ({"hidden": None}, "hidden=None"),
        ({"alpha": "all"}, "alpha='all'"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"temperature": 0}, "temperature=0.0"),
        ({"temperature": True}, "temperature=True"),
        ({"hidden": 1, "layers": "every"}, "layers='every': .*allowed are same, even, nearest"),
        (
            {"hidden": 1, "layers": [[1, 2], [3]]},
            r"layers=\[\[1, 2\], \[3\]\]: must be same, even, nearest, or",
        ),
        ({"hidden": 1, "layers": [[1, -2]]}, "or pairs such as"),
        ({"layers": "even"}, "layers='even': is about hidden states, and hidden is 0"),
        ({"separate": True}, "separate=True: is about hidden states, and hidden is 0"),
        ({"hidden": 1, "separate": 1}, "separate=1: must be true or false"),
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


def test_next_tokens_by_hand():
    """Position i answers for label i + 1: here those before the two zeros count."""
    student = torch.tensor([[EVEN, SURE, EVEN, SURE]])
    teacher = torch.tensor([[SURE, SURE, SURE, EVEN]])
    labels = torch.tensor([[1, 0, 0, -100]])
    assert float(next_token_divergence(student, teacher, 1.0, labels)) == pytest.approx(KL / 2, abs=1e-6)
    loss = distillation_loss("next_tokens", student, teacher, 1.0, labels=labels)
    assert float(loss) == pytest.approx(KL / 2, abs=1e-6)
    assert float(next_token_divergence(student, teacher, 1.0)) == pytest.approx(KL * 2 / 3, abs=1e-6)


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


# -- hidden states ----------------------------------------------------------------------------


def test_the_distance_of_hidden_states_is_relative_to_the_teachers_size():
    # layer 1: errors 1, 0 and of the teacher 1, 9: 1/10; layer 2: a student of zeros: 1
    student = [torch.tensor([[[2.0, 3.0]]]), torch.zeros(1, 1, 2)]
    teacher = [torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[50.0, 0.0]]])]
    assert hidden_distance(student, teacher).item() == pytest.approx((0.1 + 1) / 2, rel=1e-2)


def test_padding_and_the_teachers_gradients_are_left_out():
    student = torch.tensor([[[1.0], [7.0]]], requires_grad=True)
    teacher = torch.tensor([[[2.0], [-9.0]]], requires_grad=True)
    distance = hidden_distance([student], [teacher], torch.tensor([[1, 0]]))
    assert distance.item() == pytest.approx(0.25, rel=1e-2)
    distance.backward()
    assert student.grad[0, 1] == 0
    assert student.grad[0, 0] != 0
    assert teacher.grad is None


def test_a_teacher_whose_hidden_states_are_zero_gives_a_finite_distance():
    assert math.isfinite(hidden_distance([torch.ones(1, 2, 3)], [torch.zeros(1, 2, 3)]).item())
