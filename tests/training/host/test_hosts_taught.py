"""Teachers with each host that can have one."""

import pytest
import torch
from training.host.kits import TAUGHT, each, lines, other_model

from fineprune import Distillation, FinepruneError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@each(TAUGHT)
def test_a_teacher_is_learned_from(kit, tmp_path):
    """With alpha 1 a student like its teacher has no loss and does not change, and another comes nearer."""
    settings = {
        "distillation": Distillation(1.0),
        "learning_rate": 3e-3,
        "max_steps": 12,
        "weight_decay": 0.0,
    }
    still = settings | {"max_steps": 2, "optim": "sgd"}
    same = kit.trainer(tmp_path / "same", None, teacher=kit.model(), **still)
    same.train()
    assert [line["distillation"] for line in lines(same)] == pytest.approx([0.0, 0.0], abs=1e-5)
    student = kit.trainer(tmp_path / "other", None, teacher=other_model(kit), **settings)
    student.train()
    distances = [line["distillation"] for line in lines(student)]
    assert distances == pytest.approx([line["loss"] for line in lines(student)], rel=1e-4)
    assert 0 < sum(distances[-3:]) < sum(distances[:3])


def test_the_folder_of_a_cross_encoder_is_a_teacher(kits, tmp_path):
    cross = kits("cross")
    other_model(cross).save_pretrained(str(tmp_path / "teacher"))
    losses = []
    for teacher in (tmp_path / "teacher", other_model(cross)):
        student = cross.trainer(tmp_path / "out", None, teacher=teacher, max_steps=2)
        student.train()
        losses.append([line["distillation"] for line in lines(student)])
    assert losses[0] == losses[1]


def test_next_tokens_are_compared_where_they_have_labels(kits, tmp_path):
    kit = kits("sft")
    model, teacher = kit.model(), other_model(kit)
    trainer = kit.trainer(tmp_path, None, model, teacher=teacher, distillation=Distillation(1.0, 1.0))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 5, 6]])
    labels = torch.tensor([[-100, 6, -100, 8], [-100, -100, -100, 6]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        own, theirs = (one(ids).logits.log_softmax(-1) for one in (model.eval(), teacher))
    each_token = (theirs.exp() * (theirs - own)).sum(-1)
    expected = (each_token[0, 0] + each_token[0, 2] + each_token[1, 2]) / 3
    loss = trainer.compute_loss(model.train(), batch)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def refused(call, *parts: str) -> None:
    with pytest.raises(FinepruneError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_what_cannot_be_taught(kits, tmp_path):
    sentence, cross = kits("sentence"), kits("cross")
    refused(
        lambda: sentence.trainer(tmp_path, teacher=sentence.model()),
        "a SentenceTransformer cannot be distilled",
        "cross-encoders",
    )
    folder = {"teacher_logits": tmp_path / "logits"}
    refused(
        lambda: cross.trainer(tmp_path, teacher=other_model(cross), **folder),
        "teacher_logits",
        "CrossEncoder",
    )
    sft = kits("sft")
    refused(
        lambda: sft.trainer(tmp_path, teacher=other_model(sft), **folder),
        "teacher_logits",
        "LlamaForCausalLM",
    )


def test_a_loss_without_gradients_cannot_be_taught(kits, tmp_path):
    cross = kits("cross")
    trainer = cross.trainer(tmp_path, teacher=other_model(cross))
    own = trainer.loss.forward

    def cached(*args, **kwargs):
        with torch.no_grad():
            return own(*args, **kwargs)

    trainer.loss.forward = cached
    refused(trainer.train, "BertForSequenceClassification without gradients", "take another loss")
