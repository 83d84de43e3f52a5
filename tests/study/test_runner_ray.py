"""A study on Ray: a local cluster of two workers, which are killed in the middle of runs."""

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from filelock import FileLock

from fineprune import FinepruneError
from fineprune.study import runner
from fineprune.study.grid import Study
from fineprune.study.runner import Failure, run_study

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    """Two workers at RAY_ADDRESS, seen by this machine alone, whose logs go with them; they tell nobody."""
    before = signal.getsignal(signal.SIGTERM)  # Ray has its own
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        # Ray's own is 15: other tests then keep workers from importing torch for minutes, and in `ray.wait`
        # pytest-timeout's alarm is lost.
        patch.setenv("RAY_worker_niceness", "0")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false"]
        settings = os.environ | {"RAY_AUTH_MODE": "disabled"}  # else it leaves a token in the home
        with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as cluster:
            try:
                assert any("Ray runtime started" in line for line in cluster.stdout)
                yield
            finally:
                cluster.terminate()
                signal.signal(signal.SIGTERM, before)


def make_runs(recipe: Path, out: Path, tasks: dict[str, list[str]], **axes):
    """Runs of the tiny recipe; a task has its overrides."""
    recipes = {task: [str(recipe), *more] for task, more in tasks.items()}
    axes = {"method": "movement", "density": 0.25} | axes
    return Study.from_dict({"name": "x", "recipes": recipes, "axes": axes}).runs(out)


def stub(run, out, place, threads):
    """In the place of `work`: leaves a line for each time it is started, and ends as its task says."""
    import os
    import signal
    import time

    task = run.cell.task
    if task == "nowhere":
        raise FileNotFoundError("no such\nfolder")
    begun = out / ".study" / f"{run.name}.begun"
    begun.touch()
    tries = out / f"{task}.tries"
    with tries.open("a") as file:
        print(os.getpid(), place, threads, file=file)
    if task == "dies" or (task == "once" and len(tries.read_text().splitlines()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "sleeps":
        time.sleep(60)
    other = {"a": "b", "b": "a"}.get(task, task)
    for _ in range(200):  # a and b are there at once, or both fail
        if (out / f"{other}.tries").exists():
            break
        time.sleep(0.1)
    else:
        raise TimeoutError
    begun.unlink()
    return run.name, "done"


stub.__module__ = "__main__"  # so that workers get it by value: they cannot import this file


def tries(out: Path, task: str) -> list[list[str]]:
    """The words of each start: process, directory, threads."""
    return [line.split(" ") for line in (out / f"{task}.tries").read_text().splitlines()]


def test_runs_go_at_once_in_processes_of_their_own(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", stub)
    said: list[str] = []
    runs = make_runs(recipe_file, tmp_path, {task: [] for task in "abcd"})
    assert run_study(runs, tmp_path, ray=True, say=said.append) == []
    assert sorted(line.partition(" ")[2] for line in said[1:]) == [f"{run.name}: done" for run in runs]
    ((one, *given),), ((other, *_),) = tries(tmp_path, "a"), tries(tmp_path, "b")
    assert len({one, other, str(os.getpid())}) == 3
    assert given == [os.getcwd(), "1"]


def test_jobs_are_the_most_at_once(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", stub)
    said: list[str] = []
    runs = make_runs(recipe_file, tmp_path, {"c": [], "d": []})
    assert run_study(runs, tmp_path, jobs=1, ray=True, say=said.append) == []
    assert [line.split("-")[0] for line in said] == ["Ray: 1 machine, 2 cores", "1/2 c", "2/2 d"]


def test_a_worker_that_is_killed_takes_no_other_run_with_it(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", stub)
    said: list[str] = []
    runs = make_runs(recipe_file, tmp_path, {"dies": [], "once": [], "c": [], "d": []})
    failures = run_study(runs, tmp_path, ray=True, say=said.append)
    killed = "its process was killed, probably out of memory"
    assert failures == [Failure("dies-movement-0.25-s0", killed, "")]
    assert sorted(line.partition(" ")[2] for line in said[1:4]) == [
        "c-movement-0.25-s0: done",
        "d-movement-0.25-s0: done",
        "once-movement-0.25-s0: done",
    ]
    assert said[4:] == [f"4/4 dies-movement-0.25-s0: FAILED: {killed}"]
    counts = {task: len(tries(tmp_path, task)) for task in ("dies", "once", "c", "d")}
    assert counts == {"dies": 3, "once": 2, "c": 1, "d": 1}  # at last alone, by itself


def test_workers_that_do_not_see_the_folder_are_one_line(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", stub)
    said: list[str] = []
    with pytest.raises(FinepruneError, match=r"^Ray cannot start a run: no such folder$"):
        run_study(make_runs(recipe_file, tmp_path, {"nowhere": [], "c": []}), tmp_path, 1, True, said.append)
    assert said[1:] == ["1/2 c-movement-0.25-s0: done"]


def killed_once(run, out, place, threads):
    """In the place of `work`: the first run that comes to step 7 loses its process there."""
    import os
    import signal

    from transformers import Trainer

    from fineprune.study import runner

    write_log = Trainer.log

    def log(self, *args, **kwargs):
        write_log(self, *args, **kwargs)
        if self.state.global_step == 7 and not (out / "killed").exists():
            (out / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.log = log
    return runner.work(run, out, place, threads)


killed_once.__module__ = "__main__"


def test_a_run_that_lost_its_worker_goes_on_and_one_that_fails_is_told(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", killed_once)
    out = tmp_path / "out"
    runs = make_runs(recipe_file, out, {"a": [], "b": ["model.name=nowhere/none"]}, seed=[0, 1])
    said: list[str] = []
    failures = run_study(runs, out, ray=True, say=said.append)
    assert sorted(failure.run for failure in failures) == ["b-movement-0.25-s0", "b-movement-0.25-s1"]
    assert all("nowhere/none" in failure.error and "\n" not in failure.error for failure in failures)
    assert sum(": FAILED: nowhere/none" in line for line in said) == 2
    assert (out / "killed").exists()
    results = [json.loads((out / f"a-movement-0.25-s{seed}" / "results.json").read_text()) for seed in (0, 1)]
    assert sorted(result["resumed_from_step"] for result in results) == [0, 4]


# -- the cluster ------------------------------------------------------------------------------

STUDY = """
import sys
from pathlib import Path
from fineprune.study import runner
from fineprune.study.grid import Study
exec(sys.argv[3])
runner.work = stub
out = Path(sys.argv[2])
recipes, axes = {"sleeps": sys.argv[1]}, {"method": "movement", "density": 0.25}
runner.run_study(Study.from_dict({"name": "x", "recipes": recipes, "axes": axes}).runs(out), out, ray=True)
"""


def test_ctrl_c_leaves_no_worker_and_no_lock(recipe_file, tmp_path):
    command = [sys.executable, "-c", STUDY, str(recipe_file), str(tmp_path), inspect.getsource(stub)]
    own = os.environ | {"RAY_ADDRESS": "", "HOME": str(tmp_path)}  # where it leaves its token
    with subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout.readline().startswith("Ray: 1 machine, ")
        while study.poll() is None and not (tmp_path / "sleeps.tries").exists():
            time.sleep(0.1)
        study.send_signal(signal.SIGINT)
        study.wait()
    ((worker, *_),) = tries(tmp_path, "sleeps")
    for _ in range(50):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker is still there")
    with FileLock(tmp_path / ".study" / "lock", timeout=0):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:9", "somewhere"])
def test_a_cluster_that_is_not_there_is_one_line(recipe_file, tmp_path, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(FinepruneError, match=f"^RAY_ADDRESS={address}: no cluster to run on ") as error:
        run_study(make_runs(recipe_file, tmp_path, {"c": []}), tmp_path, ray=True)
    assert "\n" not in str(error.value)
