"""The same scenarios with each host: transformers, sentence-transformers and trl."""

import copy
import pickle

import forked
import pytest
import torch
from datasets import Dataset
from training.host.kits import (
    SOFT,
    STEPS,
    each,
    lines,
    other_model,
    same_tensors,
)
from transformers import (
    Trainer,
    TrainingArguments,
)

import fineprune
from fineprune import Distillation, FinepruneError, PruningTrainer, pruning_trainer, summary

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


# -- the class --------------------------------------------------------------------------------


@each()
def test_the_class_of_a_host(kit):
    made = pruning_trainer(kit.base)
    assert made is pruning_trainer(kit.base) is pruning_trainer(made) is fineprune.pruning_trainer(kit.base)
    assert issubclass(made, kit.base)
    assert made.__name__ == f"Pruning{kit.base.__name__}"
    assert pickle.loads(pickle.dumps(made)) is made
    assert copy.deepcopy(made) is made


def test_the_class_of_transformers_trainer_and_what_is_none():
    assert pruning_trainer(Trainer) is PruningTrainer
    for wrong in (TrainingArguments, "Trainer", None):
        with pytest.raises(FinepruneError, match="a subclass of it"):
            pruning_trainer(wrong)


# -- training ---------------------------------------------------------------------------------


@each()
def test_training_prunes_logs_evaluates_and_saves_an_ordinary_model(kit, tmp_path):
    trainer = kit.trainer(tmp_path / "out", eval_strategy="steps", eval_steps=4)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.pruner.density == pytest.approx(0.25, abs=0.01)
    training, evaluation = (
        [line for line in lines(trainer) if kind in line] for kind in ("loss", "eval_loss")
    )
    assert len(training) == STEPS
    assert len(evaluation) == 2
    assert training[0]["density"] == 1.0
    assert training[-1]["density"] == evaluation[-1]["density"] == trainer.pruner.density
    changed = {
        name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert any(name.endswith("weight.0.scores") for name in changed)
    assert any(name.endswith("weight.original") for name in changed)
    trainer.save_model(str(tmp_path / "model"))
    assert summary(kit.opened(tmp_path / "model")).kept == summary(trainer.model).kept
    groups = trainer.optimizer.param_groups
    (scores,) = [group for group in groups if group["initial_lr"] == 3e-2]
    assert {id(entry) for entry in scores["params"]} == {
        id(target.scores) for target in trainer.pruner.targets
    }
    assert scores["weight_decay"] == 0


@each()
@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_two_micro_batches_are_one_batch(kit, tmp_path, taught):
    """With a penalty, and a teacher where there can be one: each counts once in an optimizer step."""
    if taught and kit.base.__name__ == "SentenceTransformerTrainer":
        return
    settings = {"optim": "sgd", "max_steps": 4, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    trainers = []
    for batch, parts in ((8, 1), (4, 2)):
        taught_by = {"teacher": other_model(kit), "distillation": Distillation(0.5)} if taught else {}
        trainer = kit.trainer(
            tmp_path / f"{batch}",
            SOFT,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=parts,
            **settings,
            **taught_by,
        )
        if kit.base.__name__ == "SentenceTransformerTrainer":
            trainer.loss = pairs_mean(trainer.model)
        trainer.train()
        trainers.append(trainer)
    names = ("loss", "penalty", "density", *(["distillation"] if taught else []))
    for ours, theirs in zip(*map(lines, trainers), strict=True):
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5)
    assert any(line["penalty"] > 0.1 for line in lines(trainers[0]))
    one, two = (trainer.model.state_dict() for trainer in trainers)
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), rtol=1e-4, atol=1e-5)


def pairs_mean(model):
    """A loss that is a mean over rows; the default one compares the rows of a batch."""
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    return CosineSimilarityLoss(model)


def test_trl_weighs_all_tokens_of_a_step_alike(kits, tmp_path):
    """As it does by itself, also where micro-batches have other numbers of labels."""
    kit = kits("sft")
    rows = kit.given()["train_dataset"].select(range(8)).to_dict()
    rows["labels"][0] = [-100, -100, -100, 5]
    own = {"train_dataset": Dataset.from_dict(rows)}
    losses = []
    for batch, parts in ((8, 1), (4, 2)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        trainer = kit.trainer(tmp_path / f"{batch}", max_steps=4, optim="sgd", **sizes, **own)
        trainer.train()
        losses.append([line["loss"] for line in lines(trainer)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -- checkpoints ------------------------------------------------------------------------------


@each()
def test_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(kit, tmp_path, stop_after):
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 2}
    whole = kit.trainer(tmp_path / "whole", **settings)
    whole.train()
    killed = kit.trainer(tmp_path / "killed", callbacks=[stop_after(7)], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    for step in (6, 2):  # in the second epoch, and in the first
        resumed = kit.trainer(tmp_path / "killed", **settings)
        torch.rand(5)  # the generator's state is the checkpoint's
        resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / f"checkpoint-{step}"))
        same_tensors(whole.model, resumed.model)
        assert lines(whole) == lines(resumed)


@each()
def test_the_best_state_at_the_end(kit, tmp_path, every):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    states = {}
    trainer = kit.trainer(tmp_path / "out", save_total_limit=2, **settings)
    trainer.add_callback(every(lambda step: states.update({step: copy.deepcopy(trainer.model.state_dict())})))
    loop = trainer.evaluation_loop

    def scored(*args, **kwargs):
        output = loop(*args, **kwargs)
        output.metrics["eval_score"] = {2: 0.9, 7: 0.5}.get(trainer.state.global_step, 0.0)
        return output

    trainer.evaluation_loop = scored
    trainer.train()
    assert trainer.state.best_global_step == 7  # step 2 is better, and not pruned
    best = states[7]
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, best[name]), name
    assert not all(torch.equal(best[name], states[8][name]) for name in best)
    assert summary(kit.opened(tmp_path / "out" / "checkpoint-7")).kept == summary(trainer.model).kept


OPEN = """
import sys
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification

models = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]), SentenceTransformer(sys.argv[2])
assert "fineprune" not in sys.modules
torch.save([dict(model.state_dict()) for model in models], sys.argv[3])
"""


def test_checkpoints_open_in_a_process_that_never_heard_of_pruning(kits, tmp_path):
    trainers = []
    for name in ("transformers", "sentence"):
        trainers.append(kits(name).trainer(tmp_path / name, save_strategy="steps", save_steps=STEPS))
        trainers[-1].train()
    places = [str(tmp_path / name / f"checkpoint-{STEPS}") for name in ("transformers", "sentence")]
    done = forked.python(OPEN, *places, tmp_path / "states")
    assert done.returncode == 0, done.stderr
    for trainer, state in zip(trainers, torch.load(tmp_path / "states", weights_only=True), strict=True):
        folded = fineprune.finalize(trainer.model).state_dict()
        assert state.keys() == folded.keys()
        assert all(torch.equal(state[key], folded[key]) for key in state)
        assert any(value.eq(0).float().mean() > 0.7 for value in state.values() if value.ndim == 2)
        assert trainer.evaluate()["eval_loss"] > 0  # of a model that is finalized already
