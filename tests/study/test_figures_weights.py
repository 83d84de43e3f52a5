"""The sample of weights and the histogram: every number of the record is in the data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fineprune.study.figures.chosen_runs import one_each
from fineprune.study.figures.style import Figure
from fineprune.study.figures.weights import remaining_weights, weights
from fineprune.study.study_folder import read_folder
from fineprune.training.run.mask_snapshot import Record

WriteRun = Callable[..., Path]
MakeRecord = Callable[..., Record]


def made(figure: Figure | str) -> Figure:
    assert isinstance(figure, Figure)
    return figure


def test_the_points_are_those_of_the_record(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    folder = write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.5, record=tiny_record(scored=True))
    figure = made(weights(read_folder(folder)))
    name = ("sst2-movement-0.1-s0", "movement")
    assert figure.header == ("run", "method", "before", "after", "kept")
    assert figure.data[0] == (*name, -0.4, -0.275, True)
    assert figure.data[4] == (*name, 0.0, 0.125, False)
    assert len(figure.data) == 10


def test_panels_have_equal_limits_and_magnitude_stands_beside_movement(
    write_run: WriteRun, tiny_record: MakeRecord
) -> None:
    wide = tiny_record(scored=True)
    for method in ("magnitude", "l0", "movement"):
        record = replace(wide, after=wide.after * 2) if method == "l0" else wide
        folder = write_run(f"sst2-{method}-0.1-s0", method, 0.1, 0.5, record=record).parent
    canvas = made(weights(read_folder(folder))).draw()
    assert [axis.get_title() for axis in canvas.axes] == ["magnitude", "movement", "l0"]
    limits = {axis.get_xlim() for axis in canvas.axes} | {axis.get_ylim() for axis in canvas.axes}
    assert len(limits) == 1


def test_far_points_do_not_set_the_limits_and_are_counted(
    write_run: WriteRun, tiny_record: MakeRecord
) -> None:
    many = np.linspace(-0.1, 0.1, 5000, dtype=np.float32)
    after = many.copy()
    after[0] = 100
    record = replace(tiny_record(), before=many, after=after, kept=many > 0)
    folder = write_run("sst2-magnitude-0.1-s0", "magnitude", 0.1, 0.5, record=record)
    figure = made(weights(read_folder(folder)))
    assert figure.draw().axes[0].get_xlim()[1] < 0.2
    assert "1 of 5,000 points lie outside" in figure.caption


def test_the_histogram_and_the_scores_are_in_one_table(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    write_run("sst2-magnitude-0.1-s0", "magnitude", 0.1, 0.5, record=tiny_record())
    folder = write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.5, record=tiny_record(scored=True)).parent
    figure = made(remaining_weights(read_folder(folder)))
    assert figure.header == ("part", "run", "method", "from", "to", "count", "weight", "score", "kept")
    magnitude = [row for row in figure.data if row[2] == "magnitude"]
    assert magnitude == [
        ("histogram", "sst2-magnitude-0.1-s0", "magnitude", -0.5, 0.0, 2, None, None, None),
        ("histogram", "sst2-magnitude-0.1-s0", "magnitude", 0.0, 0.5, 3, None, None, None),
    ]
    points = [row for row in figure.data if row[0] == "points"]
    assert len(points) == 10
    assert points[0][2:] == ("movement", None, None, None, -0.275, 4.0, True)
    assert "No scores: magnitude learns none." in figure.caption
    texts = [text.get_text() for axis in figure.draw().axes for text in axis.texts]
    assert texts == ["no scores"]


def test_the_lowest_density_that_most_methods_share(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    for name, method, density in (
        ("sst2-movement-0.01-s0", "movement", 0.01),
        ("sst2-movement-0.1-s0", "movement", 0.1),
        ("sst2-movement-0.03-s1", "movement", 0.03),
        ("sst2-movement-0.03-s0", "movement", 0.03),
        ("sst2-magnitude-0.03-s2", "magnitude", 0.03),
        ("sst2-magnitude-0.1-s0", "magnitude", 0.1),
    ):
        folder = write_run(name, method, density, 0.5, record=tiny_record()).parent
    caption = made(weights(read_folder(folder))).caption
    assert "sst2 at 3 %, one run for each method: sst2-magnitude-0.03-s2, sst2-movement-0.03-s0." in caption


def test_a_broken_record_gives_way_to_the_next_seed(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    broken = write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.5)
    (broken / "weights.npz").write_bytes(b"PK")
    write_run("sst2-movement-0.1-s1", "movement", 0.1, 0.5, record=tiny_record())
    runs = read_folder(broken.parent)
    assert "The run sst2-movement-0.1-s1 (sst2 at 10 %)." in made(weights(runs)).caption
    assert weights(read_folder(broken)) == "no finished run has a weights.npz that can be read"


def test_global_runs_are_preferred_where_that_is_asked(write_run: WriteRun) -> None:
    write_run("sst2-movement-0.1-global-s0", "movement", 0.1, 0.5, scope="global")
    runs = read_folder(write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.5).parent)
    own, other = (one_each(runs, lambda run: True, prefer_global=wanted) for wanted in (False, True))
    assert own is not None
    assert other is not None
    assert [run.name for run in (*own.runs, *other.runs)] == [
        "sst2-movement-0.1-s0",
        "sst2-movement-0.1-global-s0",
    ]
