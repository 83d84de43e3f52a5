"""Optimizers and schedulers of the user's, the file of the pruning, and the folder of a trial."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from transformers.trainer_utils import HPSearchBackend

from fineprune import FinepruneError, PruningConfig
from fineprune.training.host.weights import PRUNING

MOVEMENT = PruningConfig("movement", density=0.2)


def test_an_optimizer_with_the_scores_gets_their_group(make_trainer):
    trainer = make_trainer(MOVEMENT, max_steps=12)
    trainer.optimizer = torch.optim.SGD([{"params": list(trainer.model.parameters())}], lr=0.05)
    trainer.train()
    weights, scores = trainer.optimizer.param_groups
    assert {id(entry) for entry in scores["params"]} == {
        id(target.scores) for target in trainer.pruner.targets
    }
    assert scores["initial_lr"] == 3e-2
    assert weights["initial_lr"] == 0.05
    assert trainer.pruner.density == pytest.approx(0.2, abs=5e-3)


def test_a_scheduler_made_before_the_group_of_the_scores_is_refused(make_trainer):
    trainer = make_trainer(MOVEMENT)
    trainer.optimizer = torch.optim.SGD(list(trainer.model.parameters()), lr=0.05)
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 1.0)
    with pytest.raises(FinepruneError, match="scheduler was made before"):
        trainer.train()


def test_the_weight_decay_is_the_hosts_by_name(make_trainer):
    trainer = make_trainer(MOVEMENT)
    optimizer = trainer.create_optimizer()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0, 0.0]
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decay, plain, scores = (
        {names[id(entry)] for entry in group["params"]} for group in optimizer.param_groups
    )
    assert all(name.endswith(("weight.original", "weight")) for name in decay)
    assert all("LayerNorm" in name or name.endswith("bias") for name in plain)
    assert all(name.endswith("weight.0.scores") for name in scores)
    assert trainer.create_optimizer() is optimizer
    assert len(optimizer.param_groups) == 3


def test_lines_of_several_evaluation_sets_have_the_density(make_trainer, rows):
    sets = {"first": rows.select(range(8)), "second": rows.select(range(8, 16))}
    trainer = make_trainer(MOVEMENT, given={"eval_dataset": sets})
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" not in line]
    for name in sets:
        last = [line for line in lines if f"eval_{name}_loss" in line][-1]
        assert last["density"] == trainer.pruner.density
        assert trainer.evaluate()[f"eval_{name}_density"] == trainer.pruner.density
    assert not any("density" in key for key in lines[-1])  # of the whole training: train_loss


def test_a_notebook_gives_each_value_a_title(make_trainer):
    """`NotebookProgressCallback` takes what follows the first underscore."""
    trainer = make_trainer(PruningConfig("soft_movement", density=0.2))
    trainer.train()
    names = trainer.evaluate().keys() - {"epoch"}
    titles = {name.partition("_")[2] for name in names}
    assert {"density", "threshold", "lambda", "penalty", "mask_changed"} < titles
    assert len(titles) == len(names)


def test_the_file_of_the_pruning_has_scores_masks_and_hidden_weights(make_trainer):
    trainer = make_trainer(MOVEMENT)
    trainer.train()
    place = Path(trainer.args.output_dir) / "checkpoint-12"
    target = trainer.pruner.targets[0]
    with safe_open(place / PRUNING, framework="pt") as file:
        names = {key.removeprefix(f"{target.name}.") for key in set(file.keys())}
        assert {name for name in names if "." not in name} == {"scores", "mask", "hidden"}
        hidden = file.get_tensor(f"{target.name}.hidden")
    assert torch.equal(hidden, target.weight[~target.masked.mask])
    (place / PRUNING).unlink()
    other = make_trainer(MOVEMENT, "other")
    with pytest.raises(FinepruneError, match=r"broken checkpoint \(pruning.safetensors cannot be read\)"):
        other.train(resume_from_checkpoint=str(place))


def test_a_trial_that_diverges_names_a_checkpoint_of_its_own(make_trainer, monkeypatch):
    def loss(outputs, labels, num_items_in_batch=None):
        value = torch.nn.functional.cross_entropy(outputs.logits, labels)
        return value * float("nan") if trainer.state.global_step == 6 else value

    given = {"compute_loss_func": loss}
    trainer = make_trainer(None, given=given, eval_strategy="no", save_steps=4)
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, lambda trial: "third"
    trainer.hp_space = lambda trial: {}
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: {})  # knows optuna's alone
    with pytest.raises(FinepruneError, match=r"step 7: .*/third/checkpoint-4"):
        trainer.train(trial=SimpleNamespace(number=3, params={}))
