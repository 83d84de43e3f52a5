"""Runs whose budget is latency: the plan and the measurement of what came out."""

from dataclasses import replace

import pytest

from fineprune import FinepruneError
from fineprune.inference.bench.timing import processor
from fineprune.pruning.latency import LatencyTable, Shape
from fineprune.training.run import latency
from fineprune.training.run.inspection import planned_time
from fineprune.training.run.train import run_recipe

# Two layers of 16 neurons, each 1/4 ms: 8 of 10 ms.
TABLE = LatencyTable(
    runtime="torch",
    processor=processor(),
    threads=1,
    batch=1,
    length=16,
    round_to=1,
    shape=Shape(hidden=8, layers=2, heads=2, groups=2, head_size=4, neurons=16),
    dense_ms=10.0,
    attention={},
    feed_forward={0: 0.0, 4: 1.0, 8: 2.0, 16: 4.0},
    versions={},
)


@pytest.fixture
def run(files, tmp_path):
    """`run(table)`: the results of a run to 60 % of the dense time, by a table."""

    def finish(table):
        table.save(tmp_path / "table.json")
        pruning = {
            "method": "magnitude",
            "scope": "global",
            "density": 0.6,
            "structure": {"feed_forward": "neuron"},
            "budget": "latency",
            "budget_length": 16,
            "latency_table": str(tmp_path / "table.json"),
        }
        return run_recipe(files.recipe(pruning=pruning), tmp_path / "run", progress=False)

    return finish


def test_a_run_says_what_was_planned_and_what_was_measured(run, monkeypatch):
    monkeypatch.setattr(latency, "share_of", lambda dense, smaller, table: 0.63)
    results = run(TABLE)
    assert results["left"]["latency"] == pytest.approx(0.6)
    assert sum(left for left, _ in results["shrunk"]["neurons"]) == 16  # (6 - 2) · 4
    about = results["latency"]
    assert about["planned"] == pytest.approx(0.6)
    assert (about["asked"], about["measured"], about["dense_ms"]) == (0.6, 0.63, 10.0)
    assert planned_time(results) == [
        "time: asked for 60.0% of the dense model's 10.00 ms, planned 60.0%, measured 63.0% (6.30 ms); "
        f"torch, 1 x 16 tokens, 1 threads of {processor()}"
    ]
    assert not [line for line in results["warnings"] if "dense time" in line]


def test_a_plan_that_failed_is_a_warning(run, monkeypatch):
    monkeypatch.setattr(latency, "share_of", lambda dense, smaller, table: 0.67)
    (said,) = [line for line in run(TABLE)["warnings"] if "dense time" in line]
    assert said.startswith("the model takes 67.0% of the dense time in torch, and 60.0% were planned by ")


def test_a_plan_for_another_machine_is_not_measured(run):
    results = run(replace(TABLE, processor="B"))
    assert results["latency"]["measured"] is None
    assert "planned 60.0%, not measured; torch" in planned_time(results)[0]
    (said,) = [line for line in results["warnings"] if "not measured here" in line]
    assert "processor: 'B' there" in said


def test_a_table_that_does_not_fit_is_refused_before_the_run(run):
    with pytest.raises(FinepruneError, match="length: 17 there, 16 now"):
        run(replace(TABLE, length=17))


def test_other_budgets_have_no_time(files, tmp_path):
    assert latency.shrink_timed(None, None) == (None, None)
    assert planned_time({"latency": None}) == []
