"""The runs of a study: none twice, none lost, and what fails stops no other."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from filelock import FileLock
from transformers import Trainer

from fineprune import FinepruneError
from fineprune.study import local_pool, runner
from fineprune.study.grid import Study
from fineprune.study.runner import Failure, plan, run_study, state
from fineprune.training.run import train as run_module


def make_runs(recipe: Path, out: Path, tasks: dict[str, list[str]] | None = None, **axes):
    """Runs of the tiny recipe; a task has its overrides."""
    recipes = {task: [str(recipe), *more] for task, more in (tasks or {"a": []}).items()}
    axes = {"method": "movement", "density": 0.25} | axes
    return Study.from_dict({"name": "x", "recipes": recipes, "axes": axes}).runs(out)


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


# -- real runs --------------------------------------------------------------------------------


def test_a_study_with_a_teacher_a_student_and_a_failure(recipe_file, tmp_path):
    out = tmp_path / "out"
    tasks = {"a": [], "b": ["model.name=nowhere/none"]}
    runs = make_runs(recipe_file, out, tasks, distillation=[True])
    said: list[str] = []
    failures = run_study(runs, out, say=said.append)
    assert [failure.run for failure in failures] == ["b-dense-s0", "b-movement-0.25-distilled-s0"]
    assert "nowhere/none" in failures[0].error
    assert failures[1].error == "its teacher b-dense-s0 failed"
    assert all("\n" not in failure.error for failure in failures)
    written = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [Failure(**line) for line in written] == failures
    assert [line.split(" ")[:2] for line in said] == [
        ["1/4", "a-dense-s0:"],
        ["2/4", "b-dense-s0:"],
        ["3/4", "b-movement-0.25-distilled-s0:"],
        ["4/4", "a-movement-0.25-distilled-s0:"],
    ]
    assert said[1].startswith("2/4 b-dense-s0: FAILED: ")
    assert "accuracy" in said[3]
    assert {path.parent.name for path in out.glob("*/report.html")} == {
        "a-dense-s0",
        "a-movement-0.25-distilled-s0",
    }
    student = results_of(out / "a-movement-0.25-distilled-s0")
    assert student["density"] == 0.25
    assert student["recipe"]["distillation"]["teacher"] == str(out / "a-dense-s0")

    (out / "b-dense-s0").mkdir(exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in out.glob("a-*/**/*")}
    again = make_runs(recipe_file, out, {"a": []}, distillation=[True])
    said.clear()
    assert run_study(again, out, say=said.append) == []
    assert said == ["2 of 2 runs are finished"]
    assert {path: path.stat().st_mtime_ns for path in out.glob("a-*/**/*")} == before
    assert not (out / "failures.jsonl").exists()


class Killed(BaseException):
    """What stops a process in the middle of a run."""


def test_a_run_that_was_cut_goes_on(recipe_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    runs = make_runs(recipe_file, out, seed=[0, 1])
    write_log = Trainer.log

    def log(self, *args, **kwargs):
        write_log(self, *args, **kwargs)
        if self.state.global_step == 7 and self.args.seed == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "log", log)
        with pytest.raises(Killed):
            run_study(runs, out, say=lambda line: None)
    assert [entry.state for entry in plan(runs, out)] == ["cut", "to do"]
    assert run_study(runs, out, say=lambda line: None) == []
    assert [results_of(out / run.name)["resumed_from_step"] for run in runs] == [4, 0]
    assert [entry.state for entry in plan(runs, out)] == ["finished", "finished"]

    changed = make_runs(recipe_file, out, {"a": ["training.batch_size=4"]}, seed=[0])
    assert plan(changed, out)[0].state == "differs"
    (failure,) = run_study(changed, out, say=lambda line: None)
    assert "holds a run of another recipe" in failure.error
    (out / runs[0].name / "recipe.yaml").write_text("model: [")
    assert state(runs[0], out) == "differs"


# -- processes --------------------------------------------------------------------------------


WORKER = Path(__file__).with_name("pool_worker.py")


def in_processes(case: str, recipe: Path, out: Path, argument: str) -> dict:
    """What a study of pool_worker.py came to."""
    results = out.with_name("results.json")
    done = forked.python(WORKER, case, recipe, out, argument, results, seconds=280)
    assert done.returncode == 0, done.stderr
    return json.loads(results.read_text())


@pytest.mark.parametrize("how", ["dies", "ends"])
def test_a_process_that_is_killed_takes_no_other_run_with_it(recipe_file, tmp_path, how):
    out = tmp_path / "out"
    found = in_processes("dying", recipe_file, out, how)
    killed = "its process was killed, probably out of memory"
    assert found["failures"] == [[f"{how}-movement-0.25-s0", killed, ""]]
    assert sorted(line.partition(" ")[2] for line in found["said"]) == [
        "c-movement-0.25-s0: done",
        "d-movement-0.25-s0: done",
        f"{how}-movement-0.25-s0: FAILED: {killed}",
        "waits-movement-0.25-s0: done",
    ]
    given = [path.read_text().split(" ") for path in out.glob("*/given")]
    cores = len(os.sched_getaffinity(0))
    assert {tuple(words[1:]) for words in given} == {(found["place"], str(max(1, cores // 2)))}
    assert str(found["process"]) not in {words[0] for words in given}


@pytest.mark.parametrize(
    ("name", "ending"), [("SIGTERM", "SystemExit(75)"), ("SIGINT", "KeyboardInterrupt()")]
)
def test_a_signal_lets_all_runs_save_and_begins_none(recipe_file, tmp_path, name, ending):
    out = tmp_path / "out"
    assert in_processes("told", recipe_file, out, name) == {"ending": ending}
    assert {path.name for path in out.glob("*.saved")} == {
        "a-movement-0.25-s0.saved",
        "a-movement-0.25-s1.saved",
    }
    assert not (out / "failures.jsonl").exists()


def test_a_pool_that_does_not_work_is_one_line(recipe_file, tmp_path, monkeypatch):
    def parallel(*arguments):
        raise ValueError("no\ncluster")
        yield

    monkeypatch.setattr(local_pool, "outcomes", parallel)
    out = tmp_path / "out"
    with pytest.raises(FinepruneError, match=r"^loky cannot start a run: no cluster$"):
        run_study(make_runs(recipe_file, out), out, say=lambda line: None)


def test_ray_that_is_not_installed_is_one_line(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FinepruneError, match=r"--ray needs ray: pip install 'fineprune\[ray\]'"):
        run_study(make_runs(recipe_file, tmp_path / "out"), tmp_path / "out", ray=True)
    assert not (tmp_path / "out").exists()


# -- one study in a folder --------------------------------------------------------------------

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_study_is_refused_until_the_first_is_gone(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", lambda run, out, place, threads: (run.name, "done"))
    out = tmp_path / "out"
    (out / ".study").mkdir(parents=True)
    runs = make_runs(recipe_file, out)
    command = [sys.executable, "-c", HOLD, str(out / ".study" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FinepruneError, match="a study is running there; wait for it") as error:
            run_study(runs, out)
        assert "\n" not in str(error.value)
        other.send_signal(signal.SIGKILL)
    assert run_study(runs, out) == []


def test_work_waits_for_another_process_at_the_same_run(recipe_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / ".study").mkdir(parents=True)
    (run,) = make_runs(recipe_file, out)
    held: list[bool] = []

    def run_recipe(recipe, folder, **settings):
        other = FileLock(out / ".study" / f"{folder.name}.lock", timeout=0)
        try:
            other.acquire()
        except TimeoutError:
            held.append(True)
        assert settings["again"] == "the same command"
        raise ValueError("a\nb")

    monkeypatch.setattr(run_module, "run_recipe", run_recipe)
    name, outcome = runner.work(run, out, os.getcwd(), None)
    assert held == [True]
    assert (name, outcome.error) == (run.name, "ValueError: a b")
    assert 'raise ValueError("a\\nb")' in outcome.trace
    assert not list(out.glob(".study/*.begun"))


def test_a_file_in_the_place_of_the_folder_is_one_line(recipe_file, tmp_path):
    with pytest.raises(FinepruneError, match=r"cannot be written to .Not a directory.; name another"):
        run_study(make_runs(recipe_file, recipe_file), recipe_file)


# -- the plan ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "task", "expected"),
    [
        ("paper-mnli", "mnli", "6 epochs, about 73,700 steps"),  # 6 · 393,000 / 32
        ("paper-mnli", "mine", "6 epochs"),
    ],
)
def test_length(recipe, task, expected):
    runs = Study.from_dict(
        {"name": "x", "recipes": {task: recipe}, "axes": {"method": "movement", "density": 0.1}}
    )
    assert runner.length(runs.runs(Path("out"))[0]) == expected


def test_length_in_steps(recipe_file, tmp_path):
    (run,) = make_runs(recipe_file, tmp_path, {"a": ["training.steps=1200"]})
    assert runner.length(run) == "1,200 steps"


# -- several GPUs -----------------------------------------------------------------------------


@pytest.mark.parametrize(("visible", "names"), [(None, ["0", "1", "2"]), ("4,GPU-a,6", ["4", "GPU-a", "6"])])
def test_each_worker_takes_a_gpu_that_no_other_has(tmp_path, monkeypatch, visible, names):
    monkeypatch.setattr(local_pool, "_gpu_locks", [])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    taken = []
    for _ in range(3):  # as three processes do: a lock is not held twice by two objects of one either
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # which is as good as none
        local_pool.take_gpu(tmp_path)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == names
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))
    local_pool.take_gpu(tmp_path)  # more runs than GPUs
    assert os.environ["CUDA_VISIBLE_DEVICES"] in names
    assert len(local_pool._gpu_locks) == 3
    for lock in local_pool._gpu_locks:
        lock.release()


def test_one_gpu_or_none_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for count in (0, 1):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        local_pool.take_gpu(tmp_path)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not list(tmp_path.iterdir())
