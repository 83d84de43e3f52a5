"""Tables of times: which sizes are timed, and what the times of a half are, with a runtime made up here."""

from dataclasses import replace

import pytest
import torch
from support import tiny_bert

from fineprune import FinepruneError
from fineprune.inference.bench import latency, peers
from fineprune.inference.bench.peers import Peer
from fineprune.inference.bench.timing import processor
from fineprune.pruning.latency import Fit, LatencyTable
from fineprune.pruning.layout import layout_of


def milliseconds(model):
    """2 ms, and for each layer 1 ms a head and 1 ms for 8 neurons."""
    half = [(block.attentions[0].sizes.heads, block.feed_forwards[0].neurons) for block in layout_of(model)]
    return 2 + sum(heads + neurons / 8 for heads, neurons in half)


@pytest.fixture
def runtime(monkeypatch):
    """Let torch take `milliseconds`; every second round takes twice as long."""
    seen = []

    def build(job):
        seen.append(job)
        return lambda: milliseconds(job.model)

    def interleave(runs, rounds, say=None):
        return {name: [run() * 1e-3 * (1 + n % 2) for n in range(rounds)] for name, run in runs.items()}

    monkeypatch.setitem(peers.PEERS, "torch", Peer(build, 1e-3))
    monkeypatch.setattr(latency, "interleave", interleave)
    return seen


@pytest.fixture
def folder(tmp_path):
    model = tiny_bert(num_attention_heads=4)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.zero_()
    model.save_pretrained(tmp_path)
    return tmp_path


def test_widths():
    assert latency.widths(3072, 1)[:3] == [3072, 2765, 2488]
    assert latency.widths(3072, 1)[-2:] == [37, 1]  # 0.9^42 of all; and what `shrink` leaves
    assert latency.widths(64, 16) == [64, 48, 32, 16]
    assert latency.widths(8, 16) == [8]
    assert latency.widths(512, 300) == [512, 300]  # 0.9 * 512 would be 600 of them


def test_a_table(folder, runtime, tmp_path):
    done = latency.measure_tables(folder, ["torch"], length=8, threads=1, rounds=3, round_to=8)
    assert not done.skipped
    (table,) = done.tables
    # Dense: 2 + 2 · (4 + 4) = 18 ms. Each layer may lose 3 heads, and all neurons but 8.
    assert table.attention == pytest.approx({0: 0, 1: 0, 2: 1, 3: 2, 4: 3})
    assert table.feed_forward == pytest.approx({0: 0, 8: 0, 16: 1, 24: 2, 32: 3})
    assert table.dense_ms == pytest.approx(18)
    assert table.fits["attention"] == pytest.approx(Fit(0, 1, 1))
    assert table.fits["feed_forward"] == pytest.approx(Fit(0, 1 / 8, 8))
    assert table.rest_ms == pytest.approx(18 - 2 * 6)
    assert (table.runtime, table.threads, table.batch, table.length) == ("torch", 1, 1, 8)
    assert table.shape == (16, 2, 4, 4, 4, 32)
    assert table.processor == processor()
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    for job in runtime:  # the engine would leave zeros out
        assert all(bool(layer.output.dense.weight.all()) for layer in job.model.bert.encoder.layer)


@pytest.mark.usefixtures("runtime")
def test_times_that_a_run_would_refuse_are_told(folder, monkeypatch):
    """On a busy machine each half of a layer may seem to take as long as the whole layer."""
    monkeypatch.setattr(latency, "_times", lambda shares, full, ms: {0: 0.0, full // 2: ms / 2, full: ms})
    done = latency.measure_tables(folder, ["torch"], length=8, threads=1, rounds=1)
    assert not done.tables
    ((what, why),) = done.skipped
    assert what == "torch"
    assert why.startswith("the layers alone take 36 of the model's 18 ms, so other work ran beside")


def test_the_time_of_a_smaller_model(folder, runtime):
    (table,) = latency.measure_tables(folder, ["torch"], length=8, threads=1, rounds=3).tables
    dense, smaller = tiny_bert(num_attention_heads=4), tiny_bert(num_attention_heads=4, intermediate_size=8)
    assert latency.share_of(dense, smaller, table, 3) == pytest.approx(12 / 18)
    assert dense.training  # copies were timed
    with pytest.raises(FinepruneError, match=r"is of another machine .*'B' there"):
        latency.share_of(dense, smaller, replace(table, processor="B"), 3)


def test_what_cannot_run_is_told(folder, monkeypatch):
    def fail(job):
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setitem(peers.PEERS, "torch", Peer(fail, 1e-3))
    monkeypatch.setitem(peers.PEERS, "OpenVINO", Peer(fail, 1e-3, ("no_such_package",)))
    done = latency.measure_tables(folder, ["torch", "OpenVINO"], length=8, rounds=1)
    assert done == (
        [],
        [("torch", "no such instruction"), ("OpenVINO", "no_such_package not installed")],
    )


@pytest.mark.usefixtures("runtime")
def test_a_model_whose_heads_cannot_be_removed(tmp_path):
    from transformers import MPNetConfig, MPNetForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    model = MPNetForSequenceClassification(MPNetConfig(vocab_size=50, max_position_embeddings=40, **sizes))
    model.save_pretrained(tmp_path)
    (table,) = latency.measure_tables(tmp_path, ["torch"], length=8, rounds=1, round_to=8).tables
    assert table.attention == {}
    assert table.rest_ms == pytest.approx(18 - 2 * 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtimes": ["tvm"]}, "runtime 'tvm': allowed are torch, engine float32"),
        ({"round_to": 0}, "round_to is 0"),
        ({"length": 13}, "length is 13, and the model has positions for 12"),
    ],
)
def test_refused(folder, settings, message):
    with pytest.raises(FinepruneError, match=message):
        latency.measure_tables(folder, **{"length": 8, "rounds": 1} | settings)
