"""Progress where there is no terminal: lines about steps and long evaluations, with the time left."""

from types import SimpleNamespace

import pytest

from fineprune.training.run import callbacks
from fineprune.training.run.callbacks import ProgressLines, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_long_evaluation_says_how_much_is_left(monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock.now)
    lines = ProgressLines()
    for _ in range(2):  # a second evaluation counts anew
        for _ in range(5):
            clock.now += 20
            lines.on_prediction_step(None, None, None, eval_dataloader=range(5))
        lines.on_evaluate(SimpleNamespace(metric_for_best_model="f1"), None, None, metrics={})
    # a line every 30 s at most: at 40 and 80 s, then at 140 and 180 s
    assert (
        capsys.readouterr().err.splitlines()
        == [
            "evaluation: batch 2 of 5, 60 s left",
            "evaluation: batch 4 of 5, 20 s left",
        ]
        * 2
    )
