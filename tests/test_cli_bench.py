"""`fineprune bench`: the table, JSON, and input that cannot work."""

import errno
import json
from pathlib import Path

import pytest
import torch
from support import call

from fineprune.inference.bench import measure, peers, timing
from fineprune.inference.bench.peers import Peer
from fineprune.inference.bench.resident_memory import Loading

LOAD = measure._load


@pytest.fixture
def folder(save_body) -> Path:
    from transformers import BertForSequenceClassification

    place = Path(save_body())
    BertForSequenceClassification.from_pretrained(place).save_pretrained(place)
    return place


@pytest.fixture
def _few(monkeypatch):
    """Torch, one that is wrong, and one that is absent; memory as if it had been measured."""
    few = {
        "torch": peers.PEERS["torch"],
        "wrong [one]": Peer(lambda _job: lambda: {"logits": torch.zeros(1, 2)}, 1e-3),
        "absent": Peer(peers.run_torch, 1e-3, ("no_such_package",)),
    }
    monkeypatch.setattr(measure, "PEERS", few)
    loadings = [Loading("torch", 0.25, 1.0, 2.0, 300.0)]
    monkeypatch.setattr(
        measure, "_load", lambda *_: [*loadings, measure.Left("memory, runtime", "no tokenizer")]
    )


@pytest.mark.usefixtures("_few")
def test_table(folder, capsys):
    assert call("bench", folder, "--length", 8, "--rounds", 2, "--threads", 1) == 0
    told = capsys.readouterr()
    assert all(line.startswith("bench: ") for line in told.err.splitlines())
    for said in (
        "cores, 1 threads",
        "density 100.00%",
        "1 x 8 tokens, medians of 2 interleaved rounds",
        "wrong [one]",
        "1.0e+00 WRONG",
        "not run, absent: no_such_package not installed",
        "not run, memory, runtime: no tokenizer",
        "300.0",
    ):
        assert said in told.out


@pytest.mark.usefixtures("_few")
def test_one_runtime_beside_torch(folder, capsys):
    options = ("--length", 8, "--rounds", 2, "--runtime", "wrong [one]", "--json")
    assert call("bench", folder, *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["peer"] for row in told["rows"]] == ["torch", "wrong [one]"]
    assert [entry["what"] for entry in told["skipped"]] == ["memory, runtime"]  # and not "absent"


@pytest.mark.usefixtures("_few")
def test_memory_is_that_of_the_chosen_runtimes(folder, monkeypatch, capsys):
    monkeypatch.setitem(measure.PEERS, "engine int8", Peer(peers.run_torch, 1e-3))
    asked = []
    monkeypatch.setattr(measure, "_load", lambda _places, dtypes, *_: asked.append(list(dtypes)) or [])
    (folder / "results.json").write_text("{}")
    for runtimes in (["--runtime", "engine int8"], []):
        assert call("bench", folder, "--length", 8, "--rounds", 2, *runtimes) == 0
    assert asked == [["int8"], list(measure.dtypes())]
    told = capsys.readouterr().out
    assert told.index("not kept for inspect and report") < told.index("kept for inspect and report: ")


@pytest.mark.usefixtures("_few")
def test_json(folder, capsys):
    assert call("bench", folder, "--length", 8, "--rounds", 2, "--against", folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    names = {"folder", "density", "file_bytes", "batch", "length", "rounds", "machine"}
    assert set(told) == names | {"rows", "loadings", "skipped", "notes", "stopped"}
    assert [(row["peer"], row["model"], row["wrong"]) for row in told["rows"]] == [
        ("torch", None, False),
        ("wrong [one]", None, True),
        ("torch", str(folder), False),
        ("wrong [one]", str(folder), True),
    ]
    assert told["loadings"][0]["process"] == 300


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
def test_what_cannot_be_kept_is_printed(folder, capsys, monkeypatch, code):
    (folder / "results.json").write_text("{}")

    def refuse(*_, **__):
        raise OSError(code, "no")

    monkeypatch.setattr(Path, "touch", refuse)  # of the temporary file beside bench.json
    monkeypatch.setattr(Path, "unlink", refuse)
    assert call("bench", folder, "--length", 8, "--rounds", 2, "--threads", 1) == 0
    told = capsys.readouterr()
    assert "medians of 2 interleaved rounds" in told.out
    assert "it is not kept" in told.err


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_keeps_it(folder, capsys, tmp_path, quiet):
    run = tmp_path / "run"
    run.mkdir()
    folder.rename(run / "model")
    results = dict.fromkeys(("density", "kept", "total", "parameters", "score", "steps", "seconds"), 1)
    results |= {"metric": "accuracy", "scores": {"accuracy": 0.5}, "recipe": {"training": {}}}
    (run / "results.json").write_text(json.dumps(results))
    options = ["--length", 8, "--rounds", 2, "--threads", 1]
    assert call("bench", run, *options, *(["--json"] if quiet else [])) == 0
    told = capsys.readouterr()
    assert all(line.startswith("bench: ") for line in told.err.splitlines())
    kept = json.loads((run / "bench.json").read_text())
    if quiet:
        assert json.loads(told.out) == kept
    else:
        assert told.out.splitlines()[-1] == f"kept for inspect and report: {run / 'bench.json'}"
    assert call("inspect", run) == 0
    time = kept["rows"][0]["timing"]["milliseconds"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"latency: {time:.2f} ms, 1.00 x torch's speed (torch, 1 x 8 tokens, 1 thread of " in line


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("quiet", [False, True])
def test_a_folder_that_cannot_be_written_is_a_warning(folder, capsys, quiet):
    (folder / "results.json").write_text("{}")
    (folder / "bench.json").mkdir()  # which no file can replace
    assert call("bench", folder, "--length", 8, "--rounds", 2, *(["--json"] if quiet else [])) == 0
    told = capsys.readouterr()
    (said,) = (line for line in told.err.splitlines() if not line.startswith("bench: "))
    assert said.startswith(f"fineprune: {folder / 'bench.json'}: cannot be written (")
    assert "kept for" not in told.out


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize(
    ("during", "rounds", "loaded", "why"),
    [("round 4", 3, 0, "stopped after 3 of 5 rounds"), ("memory", 5, 1, "stopped after 1 ways of loading")],
)
def test_a_measurement_that_is_stopped_is_kept(during, rounds, loaded, why, folder, capsys, monkeypatch):
    (folder / "results.json").write_text("{}")
    usual, turns = timing._turn, []

    def turn(call, seconds):
        turns.append(call)
        if len(turns) == 2 * 3 + 2 and during == "round 4":  # two peers in three rounds, and one more
            raise KeyboardInterrupt
        return usual(call, seconds)

    def measured(request):
        if request.way != "torch":
            raise KeyboardInterrupt
        return Loading("torch", 0.25, 1.0, 2.0, 300.0)

    monkeypatch.setattr(timing, "_turn", turn)
    monkeypatch.setattr(measure, "_load", LOAD)
    monkeypatch.setattr(measure.resident_memory, "measure", measured)
    assert call("bench", folder, "--length", 8, "--rounds", 5, "--json") == 130
    kept = json.loads((folder / "bench.json").read_text())
    assert json.loads(capsys.readouterr().out) == kept
    assert (kept["stopped"], kept["rounds"], len(kept["loadings"])) == (True, rounds, loaded)
    assert {"what": "memory", "why": why} in kept["skipped"]


@pytest.mark.usefixtures("_few")
def test_a_measurement_that_is_stopped_early_keeps_nothing(folder, monkeypatch, names):
    (folder / "results.json").write_text("{}")
    before = names(folder)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "_turn", stopped)
    assert call("bench", folder, "--length", 8) == 130
    assert names(folder) == before


@pytest.mark.usefixtures("_few")
def test_no_room_for_temporary_files(folder, monkeypatch, names, capsys):
    def full():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    before = names(folder)
    monkeypatch.setattr(measure.tempfile, "TemporaryDirectory", full)
    assert call("bench", folder, "--length", 8) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "fineprune: no temporary folder can be written (No usable temporary directory found"
    )
    assert names(folder) == before


@pytest.mark.usefixtures("_few")
def test_a_model_folder_is_left_alone(folder, names):
    before = names(folder)
    assert call("bench", folder, "--length", 8, "--rounds", 2) == 0
    assert names(folder) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", 0], "batch is 0"),
        (["--length", 33], "length is 33, and the model has positions for 32 tokens"),
        (["--length", 4, "--against", "no/where"], "--against no/where"),
    ],
)
def test_bad_input(arguments, said, folder, capsys):
    assert call("bench", folder, *arguments) == 2
    assert said in capsys.readouterr().err


def test_no_model(tmp_path, capsys):
    assert call("bench", tmp_path) == 2
    assert "no model in it" in capsys.readouterr().err


def test_inspect_advises(folder, capsys):
    assert call("inspect", folder) == 0
    assert "the engine is no faster than a dense model at this density" in capsys.readouterr().out
    assert call("inspect", folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["engine_is_faster"] == {"float32": False, "bfloat16": False, "int8": False}


@pytest.fixture
def _table(monkeypatch):
    """A table of two layers: 1 ms for each of two heads, 1/4 ms for each of 16 neurons; 2 ms besides."""
    from fineprune.inference.bench import latency
    from fineprune.pruning.latency import LatencyTable, Shape

    heads, neurons = {0: 0.0, 1: 1.0, 2: 2.0}, {0: 0.0, 8: 2.0, 16: 4.0}
    key = ("OpenVINO int8", "A processor", 1, 1, 8, 1, Shape(8, 2, 2, 2, 4, 16), 14.0)
    made = latency.Tables([LatencyTable(*key, heads, neurons, {})], [measure.Left("torch", "absent")])

    def tables(folder, runtimes, batch, length, threads, rounds, round_to, say):
        assert (runtimes, batch, length, threads, rounds, round_to) == (["torch"], 1, 8, 1, 2, 4)
        return made

    monkeypatch.setattr(latency, "measure_tables", tables)


SIZES = ("--length", 8, "--threads", 1, "--rounds", 2, "--runtime", "torch", "--round-to", 4)


@pytest.mark.usefixtures("_table")
def test_a_table_of_times(folder, capsys):
    path = folder / "latency-openvino-int8.json"
    assert call("bench", folder, "--table", *SIZES) == 0
    told = capsys.readouterr().out
    assert "OpenVINO int8, 1 x 8 tokens, 1 threads: 14.00 ms, 2.00 of them in no head or neuron" in told
    assert f"pruning.latency_table={path}" in told
    assert "not run, torch: absent" in told
    assert json.loads(path.read_text())["attention"] == {"0": 0.0, "1": 1.0, "2": 2.0}
    assert call("bench", folder, "--table", *SIZES, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"tables": [str(path)], "skipped": [{"what": "torch", "why": "absent"}]}


def test_no_table_is_a_failure(folder, monkeypatch, capsys):
    from fineprune.inference.bench import latency

    none = latency.Tables([], [measure.Left("torch", "absent")])
    monkeypatch.setattr(latency, "measure_tables", lambda *arguments: none)
    assert call("bench", folder, "--table", *SIZES) == 1
    assert "not run, torch: absent" in capsys.readouterr().out


@pytest.mark.parametrize("threads", [0, -1])
def test_a_table_of_no_threads_is_refused(folder, threads, capsys):
    assert call("bench", folder, "--table", "--threads", threads) == 2
    assert f"threads is {threads}, expected a whole number of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--round-to", 4), "--round-to goes with --table"),
        (("--runtime", "tvm"), "runtime='tvm': allowed are torch"),
        (("--table", "--against", "x"), "--against goes without --table"),
    ],
)
def test_options_of_the_table(folder, options, said, capsys):
    assert call("bench", folder, *options) == 2
    assert said in capsys.readouterr().err
