"""Grafting: the schedule, the drawn blocks, what a step leaves alone, and what is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch

from fineprune import Distillation, FinepruneError, PruningConfig
from fineprune.training.host.grafting import Grafting, own_share, paired_blocks

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GRAFT = Distillation(graft=0.0, graft_until=0.5)


def test_the_share_by_hand():
    assert [own_share(step, 0.8, 10) for step in (0, 5, 10, 11)] == pytest.approx([0.8, 0.9, 1.0, 1.0])


def logits(trainer, batch):
    return trainer.compute_loss(trainer.model, batch, return_outputs=True)[1]["logits"].detach()


@pytest.fixture
def trained(make_trainer, make_model):
    """A trainer whose student differs from its teacher in its blocks alone, and a batch."""
    student = make_model(**NO_DROPOUT)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in teacher.bert.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    trainer = make_trainer(
        PruningConfig("movement", density=0.2),
        given={"model": student, "teacher": teacher, "distillation": GRAFT},
    )
    for part in trainer._parts:
        part.before_training(12, 0)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    return trainer, teacher, batch


def test_at_0_the_blocks_are_the_teachers_and_at_1_the_students(trained):
    trainer, teacher, batch = trained
    with torch.no_grad():
        theirs = teacher(**batch).logits
        ours = trainer.model.eval()(**batch).logits
    assert not torch.allclose(ours, theirs)
    assert torch.allclose(logits(trainer, batch), ours)  # an evaluation has no grafts
    trainer.model.train()
    assert torch.allclose(logits(trainer, batch), theirs, atol=1e-6)
    trainer.state.global_step = 6  # half of the steps
    assert torch.allclose(logits(trainer, batch), ours, atol=1e-6)
    assert not any("forward" in vars(block) for block in trainer.model.bert.encoder.layer)


def test_a_block_that_was_not_drawn_gets_no_gradient(trained):
    trainer, _, batch = trained
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    assert all(target.weight.grad is None for target in trainer.pruner.targets)
    assert trainer.model.classifier.weight.grad is not None


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(make_trainer, make_model, teacher, tmp_path):
    def trainer(name):
        given = {"teacher": teacher, "distillation": Distillation(graft=0.3, graft_until=1.0)}
        return make_trainer(PruningConfig("movement", density=0.2), name, given=given)

    whole, resumed = trainer("whole"), trainer("other")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"graft": 1.0}, r"graft=1.0: the first share .* must lie in \[0, 1\)"),
        ({"graft": -0.1}, r"graft=-0.1"),
        ({"graft_until": 0}, r"graft_until=0.0: must be a share of the steps"),
        ({"graft_until": 0.25}, r"graft_until=0.25: is about graft, which is not given"),
        ({"graft": "half"}, r"graft='half'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(FinepruneError, match=message):
        Distillation(**setting)


def test_a_teacher_that_takes_other_masks_is_refused(make_model):
    student, teacher = make_model(), make_model()
    teacher.set_attn_implementation("eager")
    with pytest.raises(FinepruneError, match="has eager attention and the student's not"):
        paired_blocks(student, teacher)
    assert paired_blocks(teacher, student)  # sdpa takes the masks of eager attention


def test_a_teacher_with_other_blocks_is_refused(make_model):
    student = make_model()
    with pytest.raises(FinepruneError, match="a teacher with the blocks of the student"):
        paired_blocks(student, make_model(num_hidden_layers=5))
    with pytest.raises(FinepruneError, match="another class or has other sizes"):
        paired_blocks(student, make_model(intermediate_size=20))
    student.config.is_encoder_decoder = True
    with pytest.raises(FinepruneError, match="not made for encoder-decoders"):
        paired_blocks(student, make_model())


def test_several_processes_are_refused(make_model, teacher):
    host = SimpleNamespace(args=SimpleNamespace(world_size=2))
    with pytest.raises(FinepruneError, match="graft needs a single process"):
        Grafting(host, make_model(), teacher, 0.8, 0.5)


def test_stored_answers_are_refused(make_trainer, teacher, tmp_path):
    given = {"teacher": teacher, "distillation": GRAFT, "teacher_logits": tmp_path}
    with pytest.raises(FinepruneError, match="teacher_logits: graft needs the teacher's blocks"):
        make_trainer(None, given=given)
