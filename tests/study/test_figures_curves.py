"""Score against density: which runs make which points, and what the captions say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fineprune.study.figures import Figure
from fineprune.study.figures.chosen_runs import measured
from fineprune.study.figures.curves import scopes, score_by_density, score_by_density_distilled
from fineprune.study.figures.published import points
from fineprune.study.study_folder import RunFolder, read_folder

WriteRun = Callable[..., Path]


MAKERS = {
    "score-by-density": score_by_density,
    "score-by-density-distilled": score_by_density_distilled,
    "scopes": scopes,
}


def drawn(folder: Path, name: str) -> Figure:
    figure = MAKERS[name](read_folder(folder))
    assert isinstance(figure, Figure)
    return figure


def table(figure: Figure, *columns: str) -> list[tuple[object, ...]]:
    places = [figure.header.index(column) for column in columns]
    return [tuple(row[place] for place in places) for row in figure.data]


@pytest.fixture
def runs(write_run: WriteRun) -> Path:
    """Two seeds at 10 %, one at 3 %."""
    write_run("sst2-dense-s0", "dense", None, 0.8)
    write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.6, kept=0.11)
    write_run("sst2-movement-0.1-s1", "movement", 0.1, 0.7, kept=0.09)
    return write_run("sst2-movement-0.03-s0", "movement", 0.03, 0.5).parent


def test_points_are_means_over_seeds_at_the_density_that_was_reached(runs: Path) -> None:
    figure = drawn(runs, "score-by-density")
    columns = ("task", "line", "method", "density", "reached", "mean", "deviation", "seeds")
    assert table(figure, *columns) == [
        ("sst2", "dense", "dense", 1.0, 1.0, 80.0, None, None),
        ("sst2", "measured", "movement", 0.03, 0.03, 50.0, None, 1),
        ("sst2", "measured", "movement", 0.1, 0.1, 65.0, pytest.approx(7.0710678), 2),
    ]


def test_the_caption_says_where_there_is_one_seed(runs: Path) -> None:
    caption = drawn(runs, "score-by-density").caption
    assert "Mean over 1 to 2 seeds" in caption
    assert "One seed only, hence no band: sst2: movement at 3 %." in caption


def test_one_seed_each_is_said_once(write_run: WriteRun) -> None:
    write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.6)
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.6).parent
    caption = drawn(folder, "score-by-density").caption
    assert "One seed each: no band." in caption
    assert "No dense run is finished: sst2." in caption


def test_unfinished_runs_are_named(runs: Path, write_run: WriteRun) -> None:
    write_run("sst2-l0-0.1-s0", "l0", 0.1, None)
    figure = drawn(runs, "score-by-density")
    assert "Not finished, and not shown: sst2-l0-0.1-s0." in figure.caption
    assert "l0" not in {row[2] for row in figure.data}


def test_a_band_is_drawn_only_where_there_are_seeds(runs: Path, write_run: WriteRun) -> None:
    one = drawn(runs, "score-by-density").draw().axes[0]
    assert len(one.collections) == 1  # a bar at the density that has two
    assert one.collections[0].get_paths()[0].vertices.shape == (2, 2)
    write_run("sst2-movement-0.03-s1", "movement", 0.03, 0.4)
    both = drawn(runs, "score-by-density").draw().axes[0]
    assert both.collections[0].get_paths()[0].vertices.shape[0] > 2  # an area


def test_a_panel_for_each_task(runs: Path, write_run: WriteRun) -> None:
    write_run("mrpc-movement-0.1-s0", "movement", 0.1, 0.6)
    canvas = drawn(runs, "score-by-density").draw()
    assert [axis.get_title() for axis in canvas.axes] == ["mrpc", "sst2"]


def test_models_of_one_task_get_a_panel_each(runs: Path, write_run: WriteRun) -> None:
    write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.6, model={"name": "some/bert", "layers": 6})
    assert {row[0] for row in drawn(runs, "score-by-density").data} == {"sst2, tiny", "sst2, bert, 6 layers"}


def test_of_two_runs_of_one_setting_and_seed_the_first_is_taken(runs: Path) -> None:
    read = read_folder(runs)
    copy = replace(read[-1], path=runs / "zzz", results=dict(read[-1].results or {}, score=0.1))
    found = measured([*read, copy])
    assert sum(len(group.rows) for group in found.groups) == 4
    assert found.notes == ["Left out, as others are of the same setting and seed: zzz."]


def test_with_a_teacher_the_same_method_without_is_shown_thin(runs: Path, write_run: WriteRun) -> None:
    write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.4)
    write_run("sst2-movement-0.1-distilled-s0", "movement", 0.1, 0.75)
    figure = drawn(runs, "score-by-density-distilled")
    assert table(figure, "method", "distillation", "density", "mean") == [
        ("dense", False, 1.0, 80.0),
        ("movement", True, 0.1, 75.0),
        ("movement", False, 0.03, 50.0),
        ("movement", False, 0.1, 65.0),
    ]
    assert "movement" in {row[2] for row in drawn(runs, "score-by-density").data if row[4] is False}
    assert 75.0 not in {row[8] for row in drawn(runs, "score-by-density").data}


def test_a_method_of_one_scope_alone_is_shown_with_that(write_run: WriteRun) -> None:
    folder = write_run("sst2-movement-0.1-global-s0", "movement", 0.1, 0.6, scope="global").parent
    write_run("sst2-magnitude-0.1-s0", "magnitude", 0.1, 0.5)
    write_run("sst2-magnitude-0.1-global-s0", "magnitude", 0.1, 0.4, scope="global")
    figure = drawn(folder, "score-by-density")
    local = ("magnitude", "local", 50.0)
    assert table(figure, "method", "scope", "mean") == [local, ("movement", "global", 60.0)]
    both = drawn(folder, "scopes")
    assert table(both, "method", "scope", "mean") == [local, ("magnitude", "global", 40.0)]


def test_no_method_with_both_scopes_is_said(runs: Path) -> None:
    assert scopes(read_folder(runs)) == "no method was run with both local and global selection"


def test_published_points_lie_beside_squad_within_its_densities(write_run: WriteRun) -> None:
    write_run("squad-movement-0.1-s0", "movement", 0.1, 0.6, metric="f1")
    folder = write_run("squad-movement-0.05-s0", "movement", 0.05, 0.5, metric="f1").parent
    figure = drawn(folder, "score-by-density")
    assert [row[6:9] for row in figure.data if row[1] == "paper"] == [
        (0.051, "f1", 79.6),
        (0.081, "f1", 81.2),
        (0.101, "f1", 81.7),
    ]
    assert "BERT-base" in figure.caption


def test_published_points_are_those_of_the_page() -> None:
    assert points("qqp", True, "soft_movement", "global", "accuracy")[:2] == [(0.0262, 89.1), (0.0315, 89.3)]
    assert points("mnli", True, "movement", "global", "mismatched_accuracy")[0] == (0.03, 78.1)
    assert points("squad", False, "l0", "global", "exact_match")[-1] == (0.668, 75.0)
    assert points("squad", False, "l0", "global", "loss") == []
    assert points("sst2", False, "l0", "global", "accuracy") == []
    assert points("qqp", False, "magnitude", "global", "f1") == []


def test_a_run_without_its_main_score_is_left_out(runs: Path) -> None:
    read = read_folder(runs)
    broken = [broken_score(run) if run.name == "sst2-movement-0.03-s0" else run for run in read]
    figure = score_by_density(broken)
    assert isinstance(figure, Figure)
    assert table(figure, "density") == [(1.0,), (0.1,)]


def broken_score(run: RunFolder) -> RunFolder:
    return replace(run, results=dict(run.results or {}, scores={}))


def test_one_density_is_a_sentence(write_run: WriteRun) -> None:
    write_run("sst2-dense-s0", "dense", None, 0.8)
    write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.6)
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.7).parent
    assert drawn(folder, "score-by-density").sentence == (
        "sst2 at 10 %, accuracy in percent: l0 70.0; movement 60.0; dense 80.0. One density makes no curve."
    )
    write_run("sst2-l0-0.03-s0", "l0", 0.03, 0.7)
    assert drawn(folder, "score-by-density").sentence == ""
