"""Run folders are read whatever is in them, and what is not there is said."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from fineprune import FinepruneError
from fineprune.study.grid import Cell
from fineprune.study.study_folder import failures, read_folder
from fineprune.training.run.mask_snapshot import MatrixSnapshot, Record

SEEN = ("no weights.npz, which runs of an older version did not leave: no masks, no sample",)


@pytest.fixture
def run(write_results) -> Path:
    """A finished run of movement, with everything that one leaves."""
    folder = write_results("a-movement-0.1-s3", "movement", 0.1, {"accuracy": 0.75}, seed=3)
    results = json.loads((folder / "results.json").read_text()) | {"parameters": 200}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(results["recipe"]))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"num_attention_heads": 2}')
    (folder / "bench.json").write_text('{"rows": []}')
    counts = np.array([1, 0], np.int32)
    matrix = MatrixSnapshot("layers.0.query", (2, 2), counts, counts, np.array([[255, 0], [0, 0]], np.uint8))
    numbers = np.array([0.5, 1.5], np.float32)
    Record((matrix,), numbers, np.array([1]), numbers, numbers, numbers > 1, None).save(folder)
    return folder


def test_a_whole_run(run):
    (found,) = read_folder(run.parent)
    assert (found.path, found.name) == (run, run.name)
    assert found.cell == Cell("a", "movement", 0.1, None, False, 3)
    assert found.results["score"] == 0.75
    assert found.recipe == found.results["recipe"]
    assert [line["loss"] for line in found.lines] == [0.5, 0.25]
    assert found.config == {"num_attention_heads": 2}
    assert found.bench == {"rows": []}
    assert found.record.matrices[0].name == "layers.0.query"
    assert found.notes == []


def test_the_folder_itself_and_from_inside(run, monkeypatch):
    assert [found.name for found in read_folder(str(run))] == [run.name]
    monkeypatch.chdir(run)
    (found,) = read_folder(".")
    assert (found.name, found.cell.name) == (run.name, run.name)
    (run.parent / "link").symlink_to(run)
    (found,) = read_folder(run.parent / "link")
    assert found.name == "link"


def test_runs_beside_the_recipe_that_they_were_made_from(run):
    (run.parent / "recipe.yaml").write_text("model: tiny\n")
    assert [found.name for found in read_folder(run.parent)] == [run.name]
    stage = run.rename(run.parent / "dense")  # the dense stage of a run that is not finished
    assert [found.path for found in read_folder(stage.parent)] == [stage.parent]


def test_a_study_is_read_by_name(run):
    for name in ("b-dense-s0", "a-dense-s0"):
        shutil.copytree(run, run.parent / name)
    (run.parent / "notes").mkdir()  # no run
    (run.parent / "rows.json").write_text("[]")
    (run.parent / "begun").mkdir()
    (run.parent / "begun" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    names = [found.name for found in read_folder(run.parent)]
    assert names == ["a-dense-s0", run.name, "b-dense-s0", "begun"]


def test_a_name_that_does_not_say_what_it_is(run):
    other = run.rename(run.with_name("my best"))
    (found,) = read_folder(other)
    assert found.cell == Cell("out", "movement", 0.1, None, False, 3)  # the folder above is called so
    assert found.notes == []


def told(place: Path, runs: dict[str, tuple[str, dict]]) -> dict[str, str]:
    """The tasks of the runs of those models and `task` sections, as they are read together."""
    for name, (model, task) in runs.items():
        recipe = {"model": {"name": model}, "task": task, "training": {"seed": 0}, "pruning": None}
        (place / name).mkdir(parents=True)
        (place / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return {found.name: found.cell.task for found in read_folder(place)}


def test_runs_of_other_data_or_models_have_other_tasks(tmp_path):
    here, there = {"train": "data/sst2/train.tsv"}, {"hub": "nyu-mll/glue", "subset": "mrpc"}
    assert told(
        tmp_path / "runs",
        {
            "plain": ("minilm", here),
            "again": ("minilm", here | {"metric": None}),  # which older recipes do not say
            "other": ("some/bert", here),
            "mrpc": ("minilm", there),
            "mine-dense-s0": ("minilm", here),  # a name that says what it is
        },
    ) == {
        "plain": "sst2, minilm",
        "again": "sst2, minilm",
        "other": "sst2, bert",
        "mrpc": "mrpc",
        "mine-dense-s0": "mine",
    }


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ({"train": "data/a.tsv"}, {"train": "data/b.tsv"}, ("a", "b")),
        ({"train": "x/a-train.tsv"}, {"validation": "x/b_dev.tsv"}, ("a", "b")),
        ({"hub": "own/set"}, {"kind": "regression"}, ("set", "regression")),
        ({"train": "x/a.tsv"}, {"train": "y/a.tsv"}, ("a, train x/a.tsv", "a, train y/a.tsv")),
        (
            {"train": "a.tsv", "text": "t"},
            {"train": "a.tsv", "text": "u", "metric": "f1"},
            ("a, text t", "a, text u"),
        ),
        ({}, {"labels": ["n"]}, ("r, labels none", "r, labels ['n']")),
    ],
)
def test_tasks_are_named_by_their_data(tmp_path, one, other, names):
    first, second = names
    runs = {"x": ("m", one), "y": ("m", one), "z": ("m", other)}
    assert told(tmp_path / "r", runs) == {"x": first, "y": first, "z": second}


def test_sections_of_strange_content_are_compared_too(tmp_path):
    strange = {1: {"a": 1, 2: [None]}, "train": 7, "hub": ["x"]}
    assert told(tmp_path / "r", {"x": ("m", strange), "y": (None, strange), "z": (["m"], [])}) == {
        "x": "['x'], m",
        "y": "['x'], model",
        "z": "r",
    }


def test_a_model_of_another_run_counts_as_that_runs(tmp_path):
    """The demo: two runs prune what the first one made."""
    tuned, task = str(tmp_path / "demo" / "dense" / "model"), {"train": "x/train.jsonl"}
    runs = {"dense": ("minilm", task), "magnitude": (tuned, task), "movement": ("dense/model", task)}
    assert set(told(tmp_path / "demo", runs).values()) == {"x"}
    moved = {"dense": ("minilm", task), "movement": ("/nowhere/demo/dense/model", task)}
    assert set(told(tmp_path / "elsewhere", moved).values()) == {"x"}
    hub = {"dense": ("minilm", task), "movement": ("owner/dense", task)}
    assert set(told(tmp_path / "hub", hub).values()) == {"x, minilm", "x, dense"}
    loop = {"a": ("b/model", task), "b": ("a/model", task)}
    assert len(told(tmp_path / "loop", loop)) == 2


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(FinepruneError, match=r"nowhere: no such folder; name that of a run, or of a study"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FinepruneError, match="no such folder"):
        read_folder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert read_folder(tmp_path / "empty") == []
    assert failures(tmp_path / "empty") == {}


def test_zeros_that_are_held_have_no_density(run):
    results = json.loads((run / "results.json").read_text())
    results["recipe"]["pruning"] = {"method": "keep_zeros", "density": 0.1, "scope": None}
    (run / "results.json").write_text(json.dumps(results))
    (found,) = read_folder(run)
    assert (found.cell.method, found.cell.density) == ("keep_zeros", None)
    assert found.notes == []


# -- what is missing --------------------------------------------------------------------------


def test_a_run_that_is_not_finished(run):
    (run / "results.json").unlink()
    (run / "weights.npz").unlink()
    (found,) = read_folder(run)
    assert found.results is None
    assert found.cell == Cell("a", "movement", 0.1, None, False, 3)
    assert len(found.lines) == 2
    assert found.record is None  # not to be missed yet
    assert found.notes == ["not finished: there is no results.json"]


def test_nothing_but_results(run):
    for path in (run / "recipe.yaml", run / "metrics.jsonl", run / "bench.json", run / "weights.npz"):
        path.unlink()
    shutil.rmtree(run / "model")
    (found,) = read_folder(run)
    assert (found.lines, found.config, found.bench) == ((), {}, None)
    assert found.cell.density == 0.1
    assert found.notes == []
    assert found.record is None
    assert tuple(found.notes) == SEEN
    assert found.record is None
    assert tuple(found.notes) == SEEN  # said once


def test_dense_runs_have_no_record(run, write_results):
    dense = write_results("a-dense-s3", "dense", None, {"accuracy": 0.9})
    results = json.loads((dense / "results.json").read_text()) | {"parameters": 200}
    (dense / "results.json").write_text(json.dumps(results))
    (found,) = read_folder(dense)
    assert found.record is None
    assert found.notes == []


# -- what is broken ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("recipe.yaml", b"model: [", "recipe.yaml: cannot be read"),
        ("recipe.yaml", b"- a\n", "recipe.yaml: is no mapping"),
        ("recipe.yaml", b"\xff\xfe\xff", "recipe.yaml: cannot be read"),
        ("recipe.yaml", b"a: !!python/object/apply:os.getcwd []", "recipe.yaml: cannot be read"),
        ("results.json", b"", "results.json: cannot be read"),
        ("results.json", b"{", "results.json: cannot be read"),
        ("results.json", b"[" * 100_000, "results.json: cannot be read"),
        ("results.json", b"\xff", "results.json: cannot be read"),
        ("results.json", b"[]", "results.json: not the results of a run"),
        ("results.json", b"{}", "results.json: not the results of a run"),
        ("metrics.jsonl", b"\xff", "metrics.jsonl: cannot be read"),
        ("metrics.jsonl", b'{"step": 1}\n[]\n{"st', "metrics.jsonl: 2 lines cannot be read"),
        ("model/config.json", b"{", "config.json: cannot be read"),
        ("bench.json", b"7", "bench.json: is no mapping"),
        ("weights.npz", b"PK", "weights.npz: cannot be read"),
    ],
)
def test_one_broken_file_costs_only_itself(run, name, content, said):
    (run / name).write_bytes(content)
    (found,) = read_folder(run)
    (whole,) = read_folder(run)
    assert (found.record is None) == (name == "weights.npz")
    assert [note for note in found.notes if said in note] == found.notes
    assert len(found.notes) == 1
    assert all("\n" not in note for note in found.notes)
    assert found.cell == whole.cell == Cell("a", "movement", 0.1, None, False, 3)
    assert (found.results is None) == (name == "results.json")
    assert (found.bench is None) == (name == "bench.json")
    assert len(found.lines) == (2 if name != "metrics.jsonl" else content.count(b"1"))


@pytest.mark.parametrize(
    "change",
    [
        {"score": "0.7"},
        {"score": True},
        {"score": float("nan")},
        {"density": None},
        {"metric": 3},
        {"scores": []},
        {"scores": {"accuracy": "high"}},
        {"scores": {"accuracy": float("inf")}},
        {"recipe": None},
        {"recipe": {"training": []}},
        {"steps": None},
        {"parameters": None},
        {"examples": {"train": "3"}},
        {"warnings": "one"},
        {"packed_bytes": 7},
        {"recipe": {"training": {}, "pruning": 7}},
    ],
)
def test_results_that_lack_something(run, change):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | change))
    (found,) = read_folder(run)
    assert found.results is None
    (note,) = found.notes
    (name,) = change
    assert note.startswith(f"results.json: not the results of a run ({name}: ")
    assert note.endswith("with --resume, which trains anew, or take the folder model alone")
    assert found.cell.name == run.name  # by recipe.yaml


@pytest.mark.parametrize(
    "change",
    [
        {"pruning": {"method": "magic", "density": 0.1, "scope": None}},
        {"pruning": {"method": [], "density": 0.1, "scope": None}},
        {"pruning": {"method": "movement", "density": "x", "scope": None}},
        {"pruning": {"method": "movement", "density": None, "scope": None}},
        {"pruning": {"method": "movement", "density": 7, "scope": None}},
        {"pruning": {"method": "movement", "density": 0.1, "scope": {}}},
        {"pruning": "movement"},
        {"training": {"seed": "3"}},
        {"training": {"seed": [3]}},
        {"training": {}},
        {"training": None},
    ],
)
def test_recipes_that_do_not_say_what_they_are(run, change):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "results.json").unlink()
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | change))
    (found,) = read_folder(run)
    assert found.cell == Cell("out", "dense", None, None, False, 0)
    assert hash(found.cell)
    assert found.notes == [
        "not finished: there is no results.json",
        "its recipe does not say what it is a run of: taken for a dense one",
    ]


def test_a_recipe_and_no_results_are_two_notes(run):
    (run / "recipe.yaml").write_text("[")
    (run / "results.json").unlink()
    (found,) = read_folder(run)
    assert found.notes[0].startswith("recipe.yaml: cannot be read")
    assert found.notes[1] == "not finished: there is no results.json"


def test_folders_in_the_place_of_files(run):
    for name in ("recipe.yaml", "metrics.jsonl", "bench.json", "weights.npz"):
        (run / name).unlink()
        (run / name).mkdir()
    shutil.rmtree(run / "model")
    (run / "model").touch()
    (found,) = read_folder(run)
    assert found.results is not None
    assert found.lines == ()
    assert sorted(note.partition(":")[0] for note in found.notes) == [
        "bench.json",
        "config.json",
        "recipe.yaml",
    ]


# -- failures ---------------------------------------------------------------------------------


def test_failures(tmp_path):
    lines = [json.dumps({"run": "a", "error": "<b>no</b>"}), "{", "[]", json.dumps({"error": "of none"})]
    (tmp_path / "failures.jsonl").write_text("\n".join([*lines, json.dumps({"run": "b"})]))
    assert failures(tmp_path) == {"a": "<b>no</b>", "b": "None"}
