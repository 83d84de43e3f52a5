"""Measuring: rounds and ratios, the inputs, peers that are wrong, absent or fail, and memory."""

import json
import math

import pytest
import torch

from fineprune import FinepruneError
from fineprune.inference import break_even
from fineprune.inference.bench import measure, peers, timing
from fineprune.inference.bench.peers import Peer
from fineprune.inference.bench.resident_memory import Request
from fineprune.inference.bench.resident_memory import measure as measure_memory


@pytest.fixture
def folder(make, tmp_path):
    make("bert").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def few(monkeypatch):
    """`few(name=Peer)`: these after torch, and no memory."""

    def use(**others):
        given = {"torch": peers.PEERS["torch"]} | others
        monkeypatch.setattr(measure, "PEERS", given)
        monkeypatch.setattr(measure, "_load", lambda *_: [])

    return use


def test_interleave(monkeypatch):
    clock, said = [0.0], []

    def pass_time(seconds, name="."):
        clock[0] += seconds
        said.append(name)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.time, "sleep", pass_time)
    calls = {"a": lambda: pass_time(0.005, "a"), "b": lambda: pass_time(1.0, "b")}
    times = timing.interleave(calls, 3)
    # Two of each first; then a, which is short, pauses and runs for 10 ms, and is timed over as long.
    assert "".join(said) == "aabb" + ".aaaab" * 3
    assert times == {"a": pytest.approx([0.005] * 3), "b": pytest.approx([1.0] * 3)}


def test_compare():
    found = timing.compare({"a": [1.0, 2.0, 3.0], "b": [0.5, 0.5, 1.0]}, "a")
    assert found["a"] == (2000, 1, 1, 1)
    assert (found["b"].milliseconds, found["b"].ratio) == (500, 3)  # of the ratios 2, 4, 3
    assert timing.compare({"a": [1.0]}, "a")["a"].ratio == 1


def test_machine(monkeypatch):
    here = timing.machine(3)
    assert here["processor"]
    assert (here["threads"], here["versions"]["torch"]) == (3, torch.__version__)
    monkeypatch.setattr(timing.Path, "read_text", lambda *_, **__: "model name\t: A processor\nflags: x\n")
    assert timing.processor() == "A processor"


@pytest.mark.usefixtures("engine")
def test_engines(folder, few):
    names = ("engine float32", "engine int8", "torch CSR")
    few(**{name: peers.PEERS[name] for name in names})
    before = torch.get_num_threads()
    done = measure.bench_folder(folder, batch=2, length=5, threads=2, rounds=2)
    assert torch.get_num_threads() == before
    assert [row.peer for row in done.rows] == ["torch", *names]
    assert not any(row.wrong for row in done.rows)
    assert done.rows[0].error == 0
    assert done.rows[1].error < 1e-5
    assert 1e-5 < done.rows[2].error < 0.3
    assert done.skipped == done.notes == []
    assert done.density == pytest.approx(0.1, abs=0.01)
    assert done.file_bytes == (folder / "model.safetensors").stat().st_size
    told = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert told["rows"][0]["timing"]["ratio"] == 1
    assert told["machine"]["threads"] == 2


def test_wrong_and_failing(folder, few):
    def fail(_job):
        raise RuntimeError("no such\ninstruction")

    def answers(value):
        return lambda _job: lambda: {"logits": value}

    few(
        absent=Peer(fail, 1, ("no_such_package", "json")),
        failing=Peer(fail, 1),
        off=Peer(answers(torch.zeros(1, 2)), 1e-3),
        nan=Peer(answers(torch.full((1, 2), math.nan)), 1e-3),
        shape=Peer(answers(torch.zeros(2, 2)), 1e-3),
        unnamed=Peer(lambda _job: dict, 1e-3),
    )
    done = measure.bench_folder(folder, length=4, rounds=2)
    assert [tuple(left) for left in done.skipped] == [
        ("absent", "no_such_package not installed"),
        ("failing", "no such instruction"),
    ]
    wrong = {row.peer: row.error for row in done.rows if row.wrong}
    assert set(wrong) == {"off", "nan", "shape", "unnamed"}
    assert wrong["off"] == 1
    assert [row["error"] for row in done.to_dict()["rows"]] == [0, 1, None, None, None]


def test_against(folder, few, make, tmp_path):
    few()
    make("distilbert").save_pretrained(tmp_path / "other")
    done = measure.bench_folder(folder, str(tmp_path / "other"), length=4, rounds=2)
    assert [(row.peer, row.model) for row in done.rows] == [
        ("torch", None),
        ("torch", str(tmp_path / "other")),
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"length": 0}, "length is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"length": 41}, "length is 41, and the model has positions for 40 tokens"),
        (
            {"against": "no/where", "length": 4},
            r"--against no/where: cannot load .* \(no such folder, so from the hub\): ",
        ),
    ],
)
def test_refused(settings, said, folder):
    with pytest.raises(FinepruneError, match=said):
        measure.bench_folder(folder, **settings)


@pytest.mark.parametrize(
    ("name", "most"), [("bert", 40), ("roberta", 39), ("distilbert", 512), ("gpt2", 40), ("albert", 40)]
)
def test_limit(name, most, make):
    inputs = measure.example(make(name), 1, most)
    assert inputs["input_ids"].shape == (1, most)
    assert int(inputs["input_ids"].min()) > 0  # padding
    make(name)(**inputs)
    with pytest.raises(FinepruneError, match=f"length is {most + 1}"):
        measure.example(make(name), 1, most + 1)


@pytest.mark.parametrize("name", ["vit", "t5"])
def test_no_texts(name, make):
    with pytest.raises(FinepruneError, match="bench times encoders of texts"):
        measure.example(make(name), 1, 4)


def test_no_csr_where_nothing_is_sparse(make, tmp_path):
    job = peers.Job(make("bert", density=0.5), {}, 1, tmp_path)
    with pytest.raises(FinepruneError, match="no layer keeps 15% or less"):
        peers.run_csr(job)


@pytest.mark.parametrize("name", ["onnxruntime", "OpenVINO"])
def test_other_runtimes(name, make, tmp_path):
    peer = peers.PEERS[name]
    if why := peers.missing(peer):
        pytest.skip(why)
    model = make("bert", num_hidden_layers=1)
    inputs = measure.example(model, 1, 6)
    job = peers.Job(model, inputs, 1, tmp_path)
    found = peer.build(job)()
    assert measure.error_of(found, peers.run_torch(job)()) < 1e-5
    folders = list(tmp_path.iterdir())
    peer.build(job)  # the export is read again
    assert list(tmp_path.iterdir()) == folders


@pytest.mark.usefixtures("engine")
def test_memory(folder):
    # Without torch in it: starting is what takes long.
    request = Request("runtime float32", str(folder), "BertForSequenceClassification", [[5, 6, 7]], 1)
    assert "tokenizer" in _why(request) or measure_memory(request).process > 0
    gone = request._replace(source=str(folder / "gone"))
    assert "gone" in _why(gone)


def _why(request):
    try:
        measure_memory(request)
    except FinepruneError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("levels", "low", "high"), [(("avx512_bf16",), 0.12, 0.32), (("amx", "avx512_bf16"), 0.05, 0.1)]
)
def test_advice(levels, low, high, monkeypatch):
    monkeypatch.setattr(break_even, "levels", lambda: levels)
    limits = [min(pair) for pair in break_even.limits().values()]
    assert (min(limits), max(limits)) == (low, high)
    assert all(break_even.faster(0.03).values())
    assert not any(break_even.faster(1).values())
    assert break_even.advice(0.03).startswith(
        "the engine is faster than a dense model at this density: float32"
    )
    assert break_even.advice(1).startswith("the engine is no faster than a dense model at this density")
    said = break_even.advice((low + high) / 2)
    assert said.startswith("the engine is faster than a dense model with ")
    assert ", not with " in said


@pytest.mark.parametrize("complete", [2, 3, 5])
def test_a_measurement_that_is_stopped_keeps_three_rounds_or_more(complete, monkeypatch):
    monkeypatch.setattr(timing, "_turn", lambda call, usual: call())
    calls = []

    def call():
        calls.append(None)
        if len(calls) == 4 + 2 * complete + 1:  # two before the rounds for each name
            raise KeyboardInterrupt

    two = {"a": call, "b": call}
    with pytest.raises(KeyboardInterrupt) as caught:
        timing.interleave(two, 9)
    if complete < 3:
        assert not isinstance(caught.value, timing.Stopped)
    else:
        assert {name: len(times) for name, times in caught.value.times.items()} == {
            "a": complete,
            "b": complete,
        }


def test_rounds_are_reported(monkeypatch):
    monkeypatch.setattr(timing, "_SAY_EVERY", 0.0)
    said = []
    timing.interleave({"a": lambda: None}, 2, said.append)
    assert said == ["round 1 of 2", "round 2 of 2"]
