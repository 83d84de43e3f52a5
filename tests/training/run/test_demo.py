"""The demo, at a few steps, on the embedded model."""

import pytest
from support import call

from fineprune import FinepruneError
from fineprune.training.run import demo
from fineprune.training.run.recipe import ModelConfig


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo's folder, its rows and what it said; few pairs and layers, to be quick."""
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "VALIDATION", 100)
    patch.setattr(demo, "_BATCH", 8)
    patch.setattr(demo, "ModelConfig", lambda name: ModelConfig(name, 2 if name == "minilm" else None))
    said = []
    out = tmp_path_factory.mktemp("demo") / "out"
    rows = demo.run_demo(out, steps=10, say=said.append)
    yield out, rows, said
    patch.undo()


def test_rows(shown):
    out, rows, said = shown
    assert [row.name for row in rows] == ["dense", "pruned"]
    assert rows[0].density == 1.0
    assert rows[0].kept == 1.0
    for row in rows[1:]:
        assert row.density == pytest.approx(0.25, abs=0.007)  # half of a head
        assert row.kept == pytest.approx(row.score / rows[0].score)
        assert (out / row.name / "model" / "config.json").is_file()
    assert any("80 + 100 pairs" in line for line in said)


def test_a_second_call_continues(shown):
    out, rows, _ = shown
    said = []
    again = demo.run_demo(out, steps=10, say=said.append)
    assert again == rows
    assert said[0].startswith("continuing")


def test_the_command_ends_with_the_page(shown, capsys):
    out, rows, _ = shown
    assert call("demo", "--out", out, "--steps", 10) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert f"With {rows[1].density:.0%} of the weights of its layers, the model keeps" in told.out
    assert "times as fast as the dense model in torch" in told.out
    assert "ms a text" in told.out
    assert f"served from: {out / 'small'}, without torch" in told.out
    assert (out / "small" / "fineprune.json").is_file()
    assert all((out / name / "report.html").is_file() for name in ("dense", "pruned"))
    assert told.out.splitlines()[-1] == f"page: {out / 'report.html'}"
    page = (out / "report.html").read_text()
    assert all(row.name in page for row in rows)


def test_other_steps_are_another_demo(shown):
    out, _, _ = shown
    with pytest.raises(FinepruneError, match="another recipe"):
        demo.run_demo(out, steps=11, say=lambda line: None)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FinepruneError, match="not a demo"):
        demo.run_demo(tmp_path, steps=10)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
