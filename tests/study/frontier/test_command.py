"""`fineprune frontier` on two tiny runs: measured once, then read; and what it refuses."""

import json
import shutil

import pytest
import yaml
from support import call, write_recipe

from fineprune import FinepruneError
from fineprune.checkpoint.model_folder import MODEL_GONE
from fineprune.study.frontier import measuring, runtimes
from fineprune.study.frontier.measurements import RECORD, read_measurements
from fineprune.study.frontier.points import task_of, tasks_in
from fineprune.study.report import make_report
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

CALL = ("--rounds", 1, "--texts", 8)


@pytest.fixture(scope="module")
def runs(save_body, tmp_path_factory):
    """A dense run and a pruned one of ten steps."""
    folder = tmp_path_factory.mktemp("study")
    rows = [f"{('bad', 'good')[i % 2]} {'very ' * (i % 3)}film\t{('neg', 'pos')[i % 2]}" for i in range(16)]
    write_recipe(folder, save_body(), rows, 0.2)
    for name, overrides in (("t-dense-s0", ["pruning=null"]), ("t-movement-0.2-s0", [])):
        faster = [
            "training.learning_rate=0.02",
            "training.dropout=0",
            "training.steps=30",
            "training.evaluate_every=3",
            *overrides,
        ]
        run_recipe(Recipe.load(folder / "recipe.yaml", faster), folder / "runs" / name)
    return folder / "runs"


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Torch, one that fails, and one that is not installed; no other process for the memory."""

    def fail(_subject):
        raise RuntimeError("no such\ninstruction")

    few = {
        "torch": runtimes.RUNTIMES["torch"],
        "engine int8": runtimes.Runtime(fail, ("fineprune-runtime",)),
        "onnxruntime": runtimes.Runtime(fail, (), ("onnxruntime_absent",), of_dense=True),
    }
    monkeypatch.setitem(runtimes.RUNTIMES, "torch", few["torch"])
    for name in list(runtimes.RUNTIMES):
        monkeypatch.delitem(runtimes.RUNTIMES, name)
    for name, runtime in few.items():
        monkeypatch.setitem(runtimes.RUNTIMES, name, runtime)
    monkeypatch.setitem(__import__("fineprune._extras")._extras.EXTRAS, "export", ("onnxruntime_absent",))
    monkeypatch.setattr(measuring.resident_memory, "measure", lambda request: Memory())


class Memory:
    def __init__(self, process=100.0) -> None:
        self.process = process


def test_it_measures_once_and_says_what_is_missing(runs, capsys, monkeypatch):
    assert call("frontier", runs, *CALL, "--within", 100, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert [(point["model"], point["runtime"]) for point in told["points"]] == [
        ("t-dense", "torch"),
        ("t-movement-0.2", "torch"),
    ]
    assert told["points"][0]["memory"] == 100
    assert "on 8 of 16 validation examples" in told["about"]
    assert told["notes"] == [
        "not measured, onnxruntime: onnxruntime_absent not installed; pip install 'fineprune[export]'",
        "not measured, engine int8 of t-dense-s0, t-movement-0.2-s0: no such instruction",
        "what failed is measured again with another version of its runtime, or with --again",
    ]
    assert (runs / "figures" / "frontier-t.png").is_file()
    monkeypatch.setattr(measuring, "_session", None)  # nothing is measured again
    assert call("frontier", runs, *CALL, "--within", 100, "--max-mb", 10) == 0
    out = capsys.readouterr().out
    assert "within 100 points of the best dense score, at most 10 MB: take t-" in out
    page = make_report(runs, runs.parent / "page.html").path.read_text()
    assert "Score against latency" in page
    assert "Not measured of these runs: speed" not in page
    assert "within 1 point of the best dense score: take t-" in page


def test_again_times_anew_and_keeps_the_scores(runs, capsys, monkeypatch):
    assert call("frontier", runs, *CALL, "--within", 100) == 0
    before = json.loads((runs / "t-dense-s0" / RECORD).read_text())
    monkeypatch.setattr(measuring, "_scored", None)  # it would score
    monkeypatch.delitem(runtimes.RUNTIMES, "engine int8")  # which failed, so it would be tried
    monkeypatch.setattr(measuring.resident_memory, "measure", lambda request: Memory(50.0))
    assert call("frontier", runs, *CALL, "--within", 100, "--again") == 0
    after = json.loads((runs / "t-dense-s0" / RECORD).read_text())
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert (new["score"], new["error"], new["bytes"]) == (old["score"], old["error"], old["bytes"])
        assert (new["memory"], old["memory"]) == ((50, 100) if old["failed"] is None else (None, None))


def test_a_session_that_is_stopped_while_it_times_keeps_the_scores(runs, tmp_path, capsys, monkeypatch):
    copied = shutil.copytree(runs, tmp_path / "runs")
    for run in copied.iterdir():
        (run / RECORD).unlink(missing_ok=True)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as now:
        now.setattr(measuring, "_times", stop)
        assert call("frontier", copied, *CALL) == 130
    (left,) = read_measurements(copied / "t-dense-s0")
    assert (left.runtime, left.failed, left.ratio, left.scored) == ("torch", measuring.UNTIMED, 0, 8)
    scored, scores = [], measuring._scored
    monkeypatch.setattr(
        measuring, "_scored", lambda blank, *rest: scored.append(blank.content) or scores(blank, *rest)
    )
    assert call("frontier", copied, *CALL, "--within", 100) == 0
    done, _ = read_measurements(copied / "t-dense-s0")
    assert (done.failed, done.score) == (None, left.score)
    assert done.ratio > 0
    assert left.content not in scored
    assert scored != []  # of the other run


def test_another_machine_is_another_measurement(runs, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "processor", lambda: "Another CPU")
    assert call("frontier", runs, *CALL, "--within", 100, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["about"].startswith("Another CPU, 1 thread.")
    machines = {entry["place"]["machine"] for entry in json.loads((runs / "t-dense-s0" / RECORD).read_text())}
    assert "Another CPU" in machines


def test_a_link_is_no_second_run_and_what_is_left_out_is_said(runs, tmp_path):
    copied = shutil.copytree(runs, tmp_path / "runs")
    (copied / "link").symlink_to(copied / "t-dense-s0")
    shutil.copytree(copied / "t-dense-s0", copied / "twice")
    (task,) = tasks_in([copied])
    assert [run.name for run in task.runs] == ["link", "t-movement-0.2-s0"]
    assert task.notes == ["Left out, as others are of the same setting and seed: twice."]
    (task,) = tasks_in([copied / "link", copied / "t-dense-s0", copied / "t-movement-0.2-s0"])
    assert [run.name for run in task.runs] == ["link", "t-movement-0.2-s0"]
    assert task.notes == []


def test_runs_without_a_model_or_with_damaged_results_are_named(runs, tmp_path, capsys):
    copied = shutil.copytree(runs, tmp_path / "runs")
    for name in ("gone", "damaged", "cut"):
        shutil.copytree(copied / "t-dense-s0", copied / name)
    shutil.rmtree(copied / "gone" / "model")
    (copied / "damaged" / "results.json").write_text("{")
    (copied / "cut" / "results.json").unlink()
    (task,) = tasks_in([copied])
    assert [run.name for run in task.runs] == ["t-dense-s0", "t-movement-0.2-s0"]
    cut, damaged, gone = task.notes
    assert cut == "cut: left out, not finished: there is no results.json"
    assert damaged.startswith("damaged: left out, results.json: cannot be read, it is damaged")
    assert gone == f"gone: left out, {MODEL_GONE}"
    shutil.rmtree(copied / "t-dense-s0")
    assert call("frontier", copied) == 2
    told = capsys.readouterr().err
    assert "the one setting of its task; a frontier compares" in told
    assert gone in told
    with pytest.raises(
        FinepruneError, match=r"gone: no finished run in it; .*/gone: the run is finished, but"
    ):
        tasks_in([copied / "gone"])


def test_a_folder_that_cannot_be_written_costs_the_picture_alone(runs, tmp_path, capsys):
    copied = shutil.copytree(runs, tmp_path / "runs")
    shutil.rmtree(copied / "figures", ignore_errors=True)
    (copied / "figures").touch()  # as good as a read-only folder, which root may write
    assert call("frontier", copied, *CALL, "--within", 100, "--json") == 0
    told = capsys.readouterr()
    (result,) = json.loads(told.out)
    assert (len(result["points"]), result["picture"]) == (2, None)
    assert result["recommendation"] is not None
    assert "figures: cannot be written (File exists)" in told.err
    assert call("frontier", copied, *CALL, "--within", 100) == 0
    assert "within 100 points of the best dense score: take t-" in capsys.readouterr().out


def test_data_of_one_name_in_two_projects_are_two_tasks(save_body, tmp_path, monkeypatch):
    for project, labels in (("a", "01"), ("b", "10"), ("c", "01")):
        folder = tmp_path / project
        folder.mkdir()
        rows = [f"{('bad', 'good')[i % 2]} film\t{labels[i % 2]}" for i in range(16)]
        write_recipe(folder, save_body(), rows, 0.2)
        monkeypatch.chdir(folder)
        task = ["task.train=train.tsv", "task.validation=train.tsv", "training.steps=2"]
        run_recipe(Recipe.load(folder / "recipe.yaml", task), folder / "run")
    monkeypatch.chdir(tmp_path / "a")
    tasks = tasks_in([tmp_path / project / "run" for project in "abc"])
    assert [[run.path.parent.name for run in task.runs] for task in tasks] == [["a", "c"], ["b"]]
    assert [task_of(task.runs[0])["train"] for task in tasks] == ["train.tsv", str(tmp_path / "b/train.tsv")]


@pytest.mark.parametrize(
    ("inside", "options", "said"),
    [
        ("", ("--within", -1), "within is -1, expected 0 or more"),
        ("t-dense-s0", (), "the one setting of its task; a frontier compares"),
        ("t-dense-s0/model", (), "no finished run in it"),
        ("nowhere", (), "no such folder"),
        ("", ("--texts", 0), "texts is 0, expected"),
        ("", (*CALL, "--max-ms", 1e-9), "nothing measured is at most 1e-09 ms a text; the nearest is t-"),
    ],
)
def test_refused(runs, inside, options, said, capsys):
    assert call("frontier", runs / inside, *options) == 2
    assert said in capsys.readouterr().err


def test_a_kind_that_cannot_be_timed(write_run, capsys):
    for name, method, density in (("x-dense-s0", "dense", None), ("x-movement-0.1-s0", "movement", 0.1)):
        folder = write_run(name, method, density, 0.9)
        results = json.loads((folder / "results.json").read_text())
        results["recipe"]["task"] = {"kind": "pictures"}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(results["recipe"]))
    assert call("frontier", folder.parent) == 2
    assert "a task of the kind 'pictures' cannot be timed" in capsys.readouterr().err
