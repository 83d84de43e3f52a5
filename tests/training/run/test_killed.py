"""kill -9 at random moments: what is continued ends with the same bits as what was left alone."""

import json
import os
from pathlib import Path

import forked
import pytest

WORKER = Path(__file__).with_name("killing_worker.py")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker forks")


def check(files, tmp_path, assert_same_run, method: str, times: int) -> int:
    """Kill so many runs, up to three times each; returns how often one was killed before its end."""
    training = {"steps": 60, "evaluate_every": 7, "keep_best": True}  # 60 is no multiple of 7
    recipe = files.recipe(training=training, pruning={"method": method, "density": 0.25})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    done = forked.python(WORKER, tmp_path / "recipe.yaml", tmp_path, times, seconds=280)
    assert done.returncode == 0, done.stderr
    for number in range(times):
        assert_same_run(tmp_path / "whole", tmp_path / str(number))
    return sum(json.loads(line)["kills"] for line in done.stdout.splitlines() if line.startswith("{"))


def test_killed_at_random_moments(files, tmp_path, assert_same_run):
    assert check(files, tmp_path, assert_same_run, "movement", 3) > 0


@pytest.mark.stress
@pytest.mark.skipif(os.environ.get("FINEPRUNE_STRESS") != "1", reason="fifty kills: FINEPRUNE_STRESS=1")
@pytest.mark.parametrize("method", ["movement", "l0"])
def test_killed_fifty_times_at_random_moments(files, tmp_path, assert_same_run, method):
    assert check(files, tmp_path, assert_same_run, method, 30) >= 50
