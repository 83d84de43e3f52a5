"""Runs that are told to stop, that diverge, or that cannot write."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fineprune import FinepruneError, PruningConfig, PruningTrainer
from fineprune.training.host import sealing
from fineprune.training.host.preemption import PREEMPTED, SIGNALS, preemptible
from fineprune.training.host.stopping import FiniteLoss, StopsAtSignals
from fineprune.training.run import finishing
from fineprune.training.run import train as run_module
from fineprune.training.run.train import run_recipe

MOVEMENT = PruningConfig("movement", density=0.25)


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(step, action)`: the runs of this test do that after that step, before it is logged."""

    def patch(step, action):
        own = StopsAtSignals.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                action()
            own(self, args, state, control, **kwargs)

        monkeypatch.setattr(StopsAtSignals, "on_step_end", on_step_end)

    return patch


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def told(number, times=1):
    """Send this process the signal."""
    return lambda: [signal.raise_signal(number) for _ in range(times)]


# -- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "ending"),
    [(signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_saves_and_the_run_goes_on_from_there(
    files, tmp_path, at_step, number, ending, caplog, capfd, assert_same_run, monkeypatch, names
):
    recipe = files.recipe(training={"steps": 16, "evaluate_every": 12}, pruning={"method": "l0"})
    handlers = [signal.getsignal(known) for known in HANDLED]
    out = tmp_path / "stopped"
    at_step(7, told(number))
    with caplog.at_level("WARNING", "fineprune"), pytest.raises(ending) as stop:
        run_recipe(recipe, out, progress=False)
    monkeypatch.undo()
    assert getattr(stop.value, "code", 75) == PREEMPTED == 75
    assert f"stopped by {number.name} after step 7, saved in {out}" in caplog.text
    assert "stopping after this step" in capfd.readouterr().err
    assert [signal.getsignal(known) for known in HANDLED] == handlers
    assert names(out / "checkpoints") == {"checkpoint-7"}
    assert not (out / ".lock").exists()
    results = run_recipe(recipe, out, resume=True, progress=False)
    assert results["resumed_from_step"] == 7
    run_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", out)


def test_a_second_ctrl_c_does_not_wait(files, tmp_path, at_step, names):
    at_step(7, told(signal.SIGINT, times=2))
    with pytest.raises(KeyboardInterrupt):
        run_recipe(files.recipe(), tmp_path / "run", progress=False)
    assert names(tmp_path / "run" / "checkpoints") == {"checkpoint-4"}


def test_sigterm_comes_twice_where_a_launcher_passes_it_on(files, tmp_path, at_step, names):
    at_step(7, told(signal.SIGTERM, times=3))
    with pytest.raises(SystemExit, match="75"):
        run_recipe(files.recipe(), tmp_path / "run", progress=False)
    assert names(tmp_path / "run" / "checkpoints") == {"checkpoint-4", "checkpoint-7"}


def test_a_study_has_no_resume(tmp_path, caplog):
    with StopsAtSignals("the same command") as stops:
        stops.on_train_begin(None, None, None)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit, match="75"):
            stops.leave(tmp_path, 3, True)
    assert f"after step 3, saved in {tmp_path}/checkpoint-3; the same command goes on" in caplog.text


def test_standard_error_may_be_gone(files, tmp_path, at_step, names, monkeypatch):
    """As under `2>&1 | tee`, which the same Ctrl-C ends."""

    def broken(place, text):
        raise BrokenPipeError

    at_step(7, lambda: (monkeypatch.setattr(os, "write", broken), signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        run_recipe(files.recipe(), tmp_path / "run", progress=False)
    monkeypatch.undo()
    assert names(tmp_path / "run" / "checkpoints") == {"checkpoint-4", "checkpoint-7"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_is_left_ignored(files, tmp_path, at_step, number):
    before = signal.signal(number, signal.SIG_IGN)  # a job in the background of a script; nohup
    try:
        at_step(7, told(number))
        with preemptible():
            assert run_recipe(files.recipe(), tmp_path / "run", progress=False)["steps"] == 12
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_program_is_loading(number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop, preemptible():
        signal.raise_signal(number)
    assert stop.value.code == 75
    assert signal.getsignal(number) == before == signal.SIG_DFL


@pytest.mark.parametrize("where", ["build_model", "finish"])
def test_before_and_after_the_training_a_signal_ends_the_run_at_once(files, tmp_path, monkeypatch, where):
    monkeypatch.setattr(run_module, where, lambda *arguments: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        run_recipe(files.recipe(), tmp_path / "run", progress=False)
    assert stop.value.code == 75
    assert (tmp_path / "run").exists() == (where == "finish")
    monkeypatch.undo()
    results = run_recipe(files.recipe(), tmp_path / "run", resume=True, progress=False)
    assert results["resumed_from_step"] == (12 if where == "finish" else 0)


def test_in_another_thread_a_run_has_no_handlers_and_works(files, tmp_path):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(run_recipe(files.recipe(), tmp_path / "run", progress=False))
    )
    thread.start()
    thread.join()
    assert done[0]["steps"] == 12


def test_the_command_line_has_a_code_of_its_own(files, tmp_path):
    recipe = files.recipe(training={"steps": 100_000, "evaluate_every": 50_000})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "fineprune", "run", "recipe.yaml", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.1)
        time.sleep(0.5)  # some steps
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert "stopped by SIGTERM after step" in said
    assert said.endswith("fineprune: stopped; a run goes on with --resume, a study by the same command\n")
    assert "Traceback" not in said
    newest, complaints = sealing.newest_whole(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert complaints == []


# -- losses that are no numbers ---------------------------------------------------------------


def loss_that_is_nan_at(step: int):
    """Cross-entropy until then; the batches of a step are one."""
    calls = iter(range(1, 1000))

    def loss(outputs, labels, num_items_in_batch=None):
        value = torch.nn.functional.cross_entropy(outputs.logits, labels)
        return value * float("nan") if next(calls) == step else value

    return loss


@pytest.mark.parametrize("step", [1, 7, 8])  # 8 would be saved
def test_a_loss_that_is_nan_stops_with_its_step_and_the_last_good_checkpoint(make_trainer, step, names):
    given = {"compute_loss_func": loss_that_is_nan_at(step)}
    trainer = make_trainer(MOVEMENT, given=given, eval_strategy="no", logging_steps=100)
    with pytest.raises(FinepruneError, match=rf"^step {step}: the loss is nan or infinite") as error:
        trainer.train()
    folder = Path(trainer.args.output_dir)
    assert ("no checkpoint was written" in str(error.value)) == (step == 1)
    assert (f"the last good checkpoint is {folder / 'checkpoint-4'}" in str(error.value)) == (step > 1)
    assert names(folder) == ({"checkpoint-4"} if step > 1 else set())


def test_weights_that_are_not_finite_are_not_saved(make_trainer, every, names):
    def spoil(step):
        if step == 8:
            trainer.model.classifier.bias.data[0] = float("inf")

    trainer = make_trainer(MOVEMENT, given={"callbacks": [every(spoil)]}, eval_strategy="no")
    with pytest.raises(
        FinepruneError, match=r"^classifier.bias became nan or infinite; the last .*-4\. Resuming would"
    ):
        trainer.train()
    assert names(Path(trainer.args.output_dir)) == {"checkpoint-4"}


def test_the_first_such_step_is_remembered_until_something_is_logged(tmp_path, caplog):
    watch, model = FiniteLoss(), torch.nn.Linear(2, 2)

    def steps():
        for step, loss in enumerate([0.5, float("inf"), 1.0, float("nan")], start=1):
            watch.note(torch.tensor([1.0, loss], requires_grad=True), step)  # of two devices

    watch.check(tmp_path, model)  # nothing yet
    steps()
    watch.check(tmp_path, model)
    watch.check(tmp_path, model)
    assert caplog.text.count("step 2: the loss is nan or infinite, not the weights") == 1
    steps()
    model.bias.data[1] = float("nan")
    with pytest.raises(FinepruneError, match=r"^step 2: "):
        watch.check(tmp_path, model)


def test_a_batch_without_a_label_stops_nothing(make_trainer, caplog):
    calls = iter(range(1, 1000))

    def loss(outputs, labels, num_items_in_batch=None):
        ignored = torch.full_like(labels, -100) if next(calls) == 7 else labels
        return torch.nn.functional.cross_entropy(outputs.logits, ignored)

    given = {"compute_loss_func": loss}
    trainer = make_trainer(MOVEMENT, given=given, eval_strategy="no", logging_steps=5)  # saved before a log
    trainer.train()
    assert trainer.state.global_step == 12
    sealing.verify(Path(trainer.args.output_dir) / "checkpoint-8")
    assert caplog.text.count("step 7: the loss is nan or infinite, not the weights") == 1


def test_the_same_trainer_may_go_on_from_an_earlier_checkpoint(make_trainer):
    given = {"compute_loss_func": loss_that_is_nan_at(7)}
    trainer = make_trainer(MOVEMENT, given=given, eval_strategy="no")
    with pytest.raises(FinepruneError, match=r"^step 7"):
        trainer.train()
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-4")
    assert trainer.state.global_step == 12


def test_a_loss_that_nobody_waits_for_is_looked_at_in_the_end(make_trainer, monkeypatch):
    monkeypatch.setattr(FiniteLoss, "due", lambda self, control: False)  # as on a GPU between logs
    given = {"compute_loss_func": loss_that_is_nan_at(7)}
    silent = {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 100}
    trainer = make_trainer(None, given=given, **silent)
    with pytest.raises(FinepruneError, match=r"^step 7"):
        trainer.train()


def test_a_diverged_run_is_one_line(files, tmp_path, refused_run):
    recipe = files.recipe(training={"learning_rate": 1e30, "max_grad_norm": 0.0})
    refused_run(recipe, tmp_path / "run", "the loss is nan or infinite", "lower learning rate")


def test_an_evaluation_loss_that_is_infinite_costs_no_run(files, tmp_path, monkeypatch, caplog):
    evaluate = PruningTrainer.evaluate
    monkeypatch.setattr(
        PruningTrainer,
        "evaluate",
        lambda self, *args, **kwargs: evaluate(self, *args, **kwargs) | {"eval_loss": float("inf")},
    )
    with caplog.at_level("WARNING", "fineprune"):
        run_recipe(files.recipe(), tmp_path / "run", progress=False)
    assert "left out, since nan or infinite: loss" in caplog.text
    assert set(json.loads((tmp_path / "run" / "results.json").read_text())["scores"]) == {
        "accuracy",
        "f1",
        "matthews",
    }


# -- what cannot be written -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "place", "kept"), [(1, "checkpoint-4", None), (5, "checkpoint-8", 4), (12, "checkpoint-12", 8)]
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    files, tmp_path, at_step, full_disk, step, place, kept, refused_run, names, monkeypatch, assert_same_run
):
    recipe, out = files.recipe(), tmp_path / "run"
    at_step(step, full_disk)
    rest = "the run has no checkpoint yet" if kept is None else f"the newest checkpoint is {out}"
    refused_run(recipe, out, f"{place}: cannot be written", rest, "make room there", "MB are free")
    monkeypatch.undo()
    full_disk(False)
    left = {4: {"checkpoint-4"}, 8: {"checkpoint-4", "checkpoint-8"}}.get(kept, set())
    assert names(out) - {"metrics.jsonl", "checkpoints"} == {"recipe.yaml"}
    assert kept is None or names(out / "checkpoints") == left  # no half of one
    results = run_recipe(recipe, out, resume=True, progress=False)
    assert results["resumed_from_step"] == (kept or 0)
    run_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", out)


def test_other_errors_of_a_save_stay_what_they_are(make_trainer, monkeypatch):
    trainer = make_trainer(MOVEMENT)

    def save(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "save_model", save)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()


def test_a_disk_that_is_full_at_the_very_end(files, tmp_path, full_disk, refused_run, monkeypatch):
    recipe, out = files.recipe(), tmp_path / "run"
    scores = finishing.scores
    monkeypatch.setattr(finishing, "scores", lambda *args: (scores(*args), full_disk())[0])
    refused_run(recipe, out, f"{out}: cannot be written", "checkpoint-12", "make room")
    monkeypatch.undo()
    full_disk(False)
    assert run_recipe(recipe, out, resume=True, progress=False)["resumed_from_step"] == 12


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(files, tmp_path, refused_run):
    (tmp_path / "shut").mkdir(mode=0o555)
    refused_run(files.recipe(), tmp_path / "shut" / "run", "cannot be written to", "--out")


def test_a_folder_that_cannot_be_made(files, refused_run):
    refused_run(files.recipe(), files.train / "run", f"{files.train / 'run'}: cannot be written to", "--out")


# -- two at a time, and a flipped byte --------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_same_folder_is_refused(files, tmp_path, at_step, refused_run, resume):
    recipe, out = files.recipe(), tmp_path / "run"
    at_step(
        5,
        lambda: refused_run(
            recipe, out, "a run is under way there" if resume else "holds another run", resume=resume
        ),
    )
    assert run_recipe(recipe, out, progress=False)["steps"] == 12


def test_a_second_run_is_refused_before_the_first_has_written(files, tmp_path, refused_run):
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / ".lock"):
        refused_run(files.recipe(), out, f"{out}: a run is under way there; wait for it")
    assert run_recipe(files.recipe(), out, progress=False)["steps"] == 12


def test_one_flipped_byte_costs_one_checkpoint(
    files, tmp_path, at_step, caplog, monkeypatch, assert_same_run
):
    recipe = files.recipe()
    run_recipe(recipe, tmp_path / "whole", progress=False)
    at_step(9, told(signal.SIGINT, times=2))
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "stopped", progress=False)
    monkeypatch.undo()
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"):
        out = shutil.copytree(tmp_path / "stopped", tmp_path / name)
        path = out / "checkpoints" / "checkpoint-8" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
        caplog.clear()
        with caplog.at_level("WARNING", "fineprune"):
            results = run_recipe(recipe, out, resume=True, progress=False)
        assert f"checkpoint-8: broken checkpoint ({name} does not match its checksum)" in caplog.text
        assert results["resumed_from_step"] == 4
        assert_same_run(tmp_path / "whole", out)
