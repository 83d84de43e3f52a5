"""A dry run goes through all stages of a recipe, estimates them, and leaves nothing."""

import tempfile
from types import SimpleNamespace

import pytest

from fineprune import FinepruneError
from fineprune.training.run import dry_run as module
from fineprune.training.run.dry_run import dry_run, lines


def test_three_stages_are_rehearsed_and_nothing_is_left(files, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(module, "_STEPS", 3)
    recipe = files.recipe(
        dense={"steps": 6, "learning_rate": 3e-3, "evaluate_every": 4},
        pruning={"structure": {"feed_forward": "neuron"}, "warmup": 2, "cooldown": 5},
        distillation={"cache": True},
        refine={"steps": 5, "learning_rate": 1e-3},
    )
    report = dry_run(recipe)
    dense, training, refine = report["stages"]
    assert [stage["stage"] for stage in report["stages"]] == ["dense", "training", "refine"]
    assert [stage["steps"] for stage in report["stages"]] == [6, 12, 5]
    assert [stage["timed_steps"] for stage in report["stages"]] == [3, 3, 3]
    assert dense["examples"] == {"train": 48, "validation": 20}
    # dense: after step 4 and at the end; training: after 4, 8, and the finished model in place of 12
    assert (dense["evaluations"], training["evaluations"]) == (2, 3)
    assert training["learning_rates"] == {"weights": 1e-2, "scores": 3e-2}
    assert (dense["densities"], refine["densities"]) == (None, None)
    # the final density from step 7 on; at step 2 pruning begins; at 5: 0.25 + 0.75 * (1 - 3/5)^3
    densities = dict(training["densities"])
    assert (densities[2], densities[5], densities[8], densities[12]) == (1.0, 0.298, 0.25, 0.25)
    assert all(stage["seconds_per_step"] > 0 < stage["seconds_per_evaluation"] for stage in report["stages"])
    assert report["seconds"] == pytest.approx(sum(stage["seconds"] for stage in report["stages"]), abs=0.1)
    assert report["memory_mb"] > 100
    assert list(lines(report))[-1].endswith("from 3 + 3 + 3 steps on this machine")
    assert not list((tmp_path / "temporary").iterdir())


def test_warnings_of_the_plan_are_in_the_report(files):
    report = dry_run(files.recipe())
    assert any(line.startswith("pruning.warmup=0.1: the model's head is new") for line in report["warnings"])
    assert not any("pruning is at step" in line for line in report["warnings"])


def test_an_error_names_its_stage(files):
    recipe = files.recipe(dense={"steps": 4}, pruning={"targets": ["qurey"]})
    with pytest.raises(FinepruneError, match=r"^training stage: .*qurey"):
        dry_run(recipe)


def test_several_processes_are_refused(files, monkeypatch):
    monkeypatch.setattr(module, "this_process", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(FinepruneError, match="--dry-run: only with a single process"):
        dry_run(files.recipe())
