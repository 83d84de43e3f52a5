"""Planning by a table of times: the fitted curves, what units cost, and tables that do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny_bert

from fineprune import FinepruneError, PruningConfig, finalize, prepare, shrink
from fineprune.pruning.latency import Fit, LatencyTable, Shape, fit, share_of_units
from fineprune.pruning.structures import grids_of
from fineprune.pruning.targets import find_targets

HEADS = {"attention": "head", "feed_forward": "neuron"}

# One attention: 1 + k/2. One feed-forward: 1 up to 32 neurons, then 1/16 each. In all 2 · (3 + 3) + 4 = 16.
TABLE = LatencyTable(
    runtime="torch",
    processor="A processor",
    threads=1,
    batch=1,
    length=128,
    round_to=1,
    shape=Shape(hidden=32, layers=2, heads=4, groups=4, head_size=8, neurons=64),
    dense_ms=16.0,
    attention={0: 0.0, 1: 1.5, 2: 2.0, 3: 2.5, 4: 3.0},
    feed_forward={0: 0.0, 8: 1.0, 16: 1.0, 32: 1.0, 48: 2.0, 64: 3.0},
    versions={"torch": "2"},
)


def bert(**settings):
    return tiny_bert(**{"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64} | settings)


@pytest.fixture
def path(tmp_path):
    TABLE.save(tmp_path / "table.json")
    return str(tmp_path / "table.json")


def config(path, density=0.5, **settings):
    given = {"method": "soft_movement", "structure": HEADS, "budget": "latency", "latency_table": path}
    return PruningConfig(**{"density": density, "warmup": 0, "cooldown": 2} | given | settings)


def test_fit():
    assert fit(TABLE.attention) == pytest.approx(Fit(1.0, 0.5, 0))
    assert fit(TABLE.feed_forward) == pytest.approx(Fit(1.0, 1 / 16, 32))
    # Times count from those of no units, and what falls is taken for flat.
    assert fit({0: 1.0, 1: 1.0, 2: 3.0, 3: 5.0}) == pytest.approx(Fit(0.0, 2.0, 1))
    assert fit({0: 0.0, 1: 3.0, 2: 2.0, 3: 1.0}) == pytest.approx(Fit(2.0, 0.0, 0))


def test_what_each_unit_adds():
    assert Fit(1.0, 0.5, 0).steps(4) == (1.5, 0.5, 0.5, 0.5)
    assert Fit(1.0, 2.0, 2).steps(4) == (1.0, 0.0, 2.0, 2.0)
    assert [Fit(1.0, 2.0, 2)(units) for units in range(5)] == [0.0, 1.0, 1.0, 3.0, 5.0]


def test_a_table_is_saved_and_loaded(path):
    assert LatencyTable.load(path) == TABLE
    assert TABLE.rest_ms == pytest.approx(4.0)
    assert TABLE.planned_ms(bert()) == pytest.approx(16.0)


def test_grids_cost_what_their_units_take(path):
    model = bert()
    (grids,) = grids_of(model, find_targets(model), config(path))
    found = list(grids.values())
    assert found[0].times == pytest.approx((1.5, 0.5, 0.5, 0.5))
    assert found[1].times == pytest.approx((1.0, *[0.0] * 31, *[1 / 16] * 32))
    assert [grid.cost for grid in found[:2]] == pytest.approx([3 / 4, 3 / 64])
    # Half of 16 ms are 8: 4 are fixed, and 4 of the 12 of all units are left.
    assert share_of_units(found, 0.5) == pytest.approx(4 / 12)
    whole = {"attention": "attention", "feed_forward": "feed_forward"}
    (grids,) = grids_of(model, find_targets(model), config(path, structure=whole))
    found = list(grids.values())
    assert [grid.times for grid in found] == [pytest.approx((3.0,))] * 4


@pytest.mark.parametrize("density", [0.8, 0.5, 0.35])
def test_a_run_keeps_its_share_of_the_dense_time(path, density):
    model = bert()
    pruner = prepare(model, config(path, density), 4)
    generator = torch.Generator().manual_seed(0)
    for target in pruner.targets:
        target.scores.data.copy_(torch.rand(target.scores.shape, generator=generator))
    for _ in range(4):
        pruner.step()
    planned = pruner.left["latency"]
    assert planned == pytest.approx(density, abs=0.75 / 16)  # half of the first head of a layer
    shrunk = shrink(finalize(model))
    assert not shrunk.refused
    alive = [len(kept.units) - len(kept.zeros) for kept in (*shrunk.heads, *shrunk.neurons)]
    curves = [TABLE.fits["attention"]] * 2 + [TABLE.fits["feed_forward"]] * 2
    by_hand = 4 + sum(curve(units) for curve, units in zip(curves, alive, strict=True))
    assert planned * 16 == pytest.approx(by_hand)
    if 0 not in alive:
        assert TABLE.planned_ms(model) == pytest.approx(by_hand)


def test_a_part_that_is_not_pruned_takes_its_time(path):
    with pytest.raises(FinepruneError, match=r"density=0.6: without any .* takes 62.5% of"):
        prepare(bert(), config(path, 0.6, structure={"feed_forward": "neuron"}), 4)  # 4 + 2 · 3 of 16
    pruner = prepare(bert(), config(path, 0.7, structure={"feed_forward": "neuron"}), 4)
    assert "heads" not in pruner.left


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ({"intermediate_size": 32}, {}, "shape.neurons: 64 there, 32 now"),
        ({"num_hidden_layers": 3}, {}, "shape.layers: 2 there, 3 now"),
        ({}, {"budget_length": 64}, "length: 128 there, 64 now"),
    ],
)
def test_a_table_of_another_model_is_refused(path, model, settings, message):
    with pytest.raises(FinepruneError, match=message):
        prepare(bert(**model), config(path, **settings), 4)


def test_a_table_of_another_machine_is_refused():
    TABLE.check_machine("A processor", 1)
    with pytest.raises(
        FinepruneError, match="processor: 'A processor' there, 'B' now; threads: 1 there, 2 now"
    ):
        TABLE.check_machine("B", 2)


def test_a_model_whose_heads_cannot_be_removed(path, tmp_path):
    replace(TABLE, attention={}).save(tmp_path / "other.json")
    given = config(str(tmp_path / "other.json"))
    with pytest.raises(FinepruneError, match=r"structure.attention: the table of times has none of it"):
        prepare(bert(), given, 4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format 2"),
        ("threads", 0, "no whole number above 0"),
        ("dense_ms", -1, "dense_ms -1"),
        ("dense_ms", 1, r"the layers alone take .* of the model's 1 ms, so other work ran beside"),
        ("attention", {"0": 0, "4": 1}, "times of 0 to 4 units"),
        ("attention", {"0": 0, "1": "x", "4": 1}, "no number of milliseconds"),
        ("shape", {"hidden": 32}, "TypeError"),
        ("runtime", None, "KeyError"),
    ],
)
def test_a_damaged_table_is_refused(path, tmp_path, key, value, message):
    values = json.loads((tmp_path / "table.json").read_text())
    values |= {key: value}
    if value is None:
        del values[key]
    (tmp_path / "table.json").write_text(json.dumps(values))
    with pytest.raises(FinepruneError, match=f"is no table of times .*{message}"):
        LatencyTable.load(path)


def test_a_table_of_nothing_is_refused(path):
    replace(TABLE, attention={}, feed_forward={}).save(Path(path))
    with pytest.raises(FinepruneError, match="times of neither heads nor neurons"):
        LatencyTable.load(path)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(FinepruneError, match=r"cannot be read .* fineprune bench DIR --table writes one"):
        prepare(bert(), config(str(tmp_path / "none.json")), 4)
