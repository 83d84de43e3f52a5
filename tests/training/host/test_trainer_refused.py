"""What PruningTrainer refuses: one line, and the model as it was."""

import shutil
from pathlib import Path

import pytest
import torch

from fineprune import FinepruneError, PruningConfig, prepare, summary
from fineprune.training.host import sealing

MOVEMENT = PruningConfig("movement", density=0.2)


def one_line(error: pytest.ExceptionInfo[FinepruneError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_an_optimizer_built_before_the_scores_is_refused(make_trainer, make_model):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(FinepruneError) as error:
        make_trainer(MOVEMENT, given={"model": model, "optimizers": (optimizer, None)})
    one_line(error, "optimizer was built before", "leave `optimizers` out")


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
    prepare(model, MOVEMENT, 12)  # nothing was put on it


def test_model_init_cannot_be_combined_with_pruning(make_trainer, make_model):
    with pytest.raises(FinepruneError) as error:
        make_trainer(MOVEMENT, given={"model_init": lambda: make_model()})
    one_line(error, "model_init")


def test_a_batch_size_that_is_looked_for_is_refused(make_trainer):
    with pytest.raises(FinepruneError, match="auto_find_batch_size cannot be combined with pruning"):
        make_trainer(PruningConfig("movement", density=0.2), auto_find_batch_size=True)


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_that_would_cast_the_model_is_refused(make_trainer, name):
    with pytest.raises(FinepruneError) as error:
        make_trainer(MOVEMENT, **{name: True})
    one_line(error, f"{name}=True cannot be combined with pruning", f"use {name[:4]}=True")
    make_trainer(None, **{name: True})  # a dense run may


def test_a_prepared_model_is_refused(make_trainer, make_model):
    model = make_model()
    prepare(model, MOVEMENT, 12)
    with pytest.raises(FinepruneError) as error:
        make_trainer(MOVEMENT, given={"model": model})
    one_line(error, "prepared already")


def test_train_called_twice_is_refused(make_trainer, tensors, assert_same):
    trainer = make_trainer(MOVEMENT)
    trainer.train()
    before = tensors(trainer)
    with pytest.raises(FinepruneError) as error:
        trainer.train()
    one_line(error, "step 12", "again")
    assert_same(before, tensors(trainer))


def test_arguments_changed_after_the_trainer_was_made_are_noticed(make_trainer):
    trainer = make_trainer(MOVEMENT)
    trainer.args.max_steps = 20
    with pytest.raises(FinepruneError) as error:
        trainer.train()
    one_line(error, "takes 20 steps", "over 12")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Where the checkpoint lies for all tests, once the first of them has trained it."""
    return tmp_path_factory.mktemp("kept") / "checkpoint-4"


@pytest.fixture
def checkpoint(make_trainer, stop_after, kept, tmp_path) -> Path:
    """checkpoint-4 of a movement run."""
    if not kept.exists():
        trainer = make_trainer(MOVEMENT, given={"callbacks": [stop_after(5)]})
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        shutil.copytree(Path(trainer.args.output_dir) / kept.name, kept)
    return Path(shutil.copytree(kept, tmp_path / "copy" / kept.name))


@pytest.mark.parametrize(
    ("other", "settings", "parts"),
    [
        (PruningConfig("movement", density=0.3), {}, ["density: 0.2 there, 0.3 now"]),
        (PruningConfig("soft_movement", density=0.2), {}, ["method: 'movement' there, 'soft_movement' now"]),
        (MOVEMENT, {"max_steps": 16}, ["total_steps: 12 there, 16 now"]),
        (None, {}, ["a pruning run's checkpoint; this run is dense"]),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    make_trainer, checkpoint, other, settings, parts, tensors, assert_same
):
    trainer = make_trainer(other, "other", **settings)
    before = tensors(trainer)
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    one_line(error, *parts)
    assert_same(before, tensors(trainer))


def test_a_dense_checkpoint_is_refused_by_a_pruning_run(make_trainer):
    dense = make_trainer(None, max_steps=4)
    dense.train()
    trainer = make_trainer(MOVEMENT, "other")
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
def test_a_damaged_file_is_one_line(make_trainer, checkpoint, name, damage, tensors, assert_same):
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    trainer = make_trainer(MOVEMENT, "other")
    before = tensors(trainer)
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    one_line(error, str(checkpoint), "broken checkpoint", name)
    assert_same(before, tensors(trainer))


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]", b'{"files": {}}'])
def test_a_damaged_manifest_is_one_line(make_trainer, checkpoint, content):
    path = checkpoint / sealing.MANIFEST
    path.unlink() if content is None else path.write_bytes(content)
    trainer = make_trainer(MOVEMENT, "other")
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    one_line(error, str(checkpoint), sealing.MANIFEST)


def test_a_checkpoint_that_is_not_there_is_one_line(make_trainer, checkpoint):
    shutil.rmtree(checkpoint)
    trainer = make_trainer(MOVEMENT, "other")
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    one_line(error, "checkpoint-4")
