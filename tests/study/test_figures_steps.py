"""The log of a run as lines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fineprune.study.figures.steps import mask_changes, steps
from fineprune.study.figures.style import Figure, panels, widen_constant
from fineprune.study.study_folder import read_folder

WriteRun = Callable[..., Path]


def made(figure: Figure | str) -> Figure:
    assert isinstance(figure, Figure)
    return figure


LINES = [
    {"step": 10, "loss": 0.9, "density": 1.0, "lambda": 0.0, "penalty": 0.0},
    {"step": 20, "loss": 5.0, "density": 0.5, "threshold": -0.5, "lambda": 7.0, "mask_changed": 0.02},
    {"step": 30, "eval_loss": 0.4, "density": 0.1, "threshold": -2.0, "lambda": 8.0, "mask_changed": 0.0},
]


def test_steps_has_a_row_for_each_step(write_run: WriteRun) -> None:
    runs = read_folder(write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, lines=LINES))
    figure = made(steps(runs))
    assert figure.header == ("run", "method", "step", "density", "threshold", "lambda", "loss")
    assert [row[2:] for row in figure.data] == [
        (10, 1.0, None, 0.0, 0.9),
        (20, 0.5, -0.5, 7.0, 5.0),
        (30, 0.1, -2.0, 8.0, None),
    ]
    assert [axis.get_title() for axis in figure.draw().axes] == [
        "density (%)",
        "threshold",
        "lambda",
        "loss",
    ]
    assert "includes the penalty" in figure.caption


def test_the_loss_of_the_task_has_a_panel_of_its_own(write_run: WriteRun) -> None:
    apart = [
        {"step": step, "loss": 500.5, "task_loss": 0.5, "penalty": 500.0, "distillation": 0.0, "density": 0.5}
        for step in (10, 20)
    ]
    apart.append({"step": 20, "eval_loss": 0.6, "penalty": 900.0, "density": 0.5})  # of the next step
    write_run("sst2-soft_movement-0.1-s0", "soft_movement", 0.1, 0.5, lines=apart)
    plain = [{"step": 10, "loss": 0.7, "density": 0.5}]
    folder = write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.5, lines=plain).parent
    figure = made(steps(read_folder(folder)))
    assert [axis.get_title() for axis in figure.draw().axes] == ["density (%)", "task loss", "penalty"]
    assert sorted(line.get_ydata()[0] for line in figure.draw().axes[1].get_lines()) == [0.5, 0.7]
    assert figure.header[-5:] == ("task_loss", "distillation", "hidden", "penalty", "loss")
    assert figure.data[-1][-5:] == (0.5, 0.0, None, 500.0, 500.5)
    assert "older version" not in figure.caption
    write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, lines=LINES)
    assert (
        "Of runs of an older version it is the whole loss: sst2-l0-0.1-s0."
        in made(steps(read_folder(folder))).caption
    )


def test_a_log_axis_has_plain_numbers(write_run: WriteRun) -> None:
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 0.03))]
    figure = made(steps(read_folder(write_run("sst2-dense-s0", "dense", None, 0.5, lines=lines))))
    assert "mathdefault" not in figure.svg()


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [((0.0, 1e-17), -1, 1), ((0.25, 0.25 + 1e-14), 0.2, 0.3), ((1e-5, 2e-5), 0, 3e-5)],
)
def test_rounding_does_not_fill_an_axis(values: tuple[float, float], low: float, high: float) -> None:
    canvas, (axis,) = panels(1)
    axis.plot([1, 2], values)
    widen_constant(axis)
    canvas.draw_without_rendering()
    bottom, top = axis.get_ylim()
    assert low <= bottom < top <= high
    assert axis.yaxis.get_offset_text().get_text() in ("", "1e−5")


def test_of_a_continued_run_the_later_line_of_a_step_counts(write_run: WriteRun) -> None:
    lines = [{"step": 1, "density": 0.9}, {"step": 2, "density": 0.8}, {"step": 2, "density": 0.7}]
    runs = read_folder(write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.5, lines=lines))
    assert [row[2:4] for row in made(steps(runs)).data] == [(1, 0.9), (2, 0.7)]


def test_thresholds_of_several_methods_are_shares_of_their_largest(write_run: WriteRun) -> None:
    write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, lines=LINES)
    other = [{"step": 10, "density": 0.5, "threshold": 0.01}, {"step": 20, "density": 0.1, "threshold": 0.04}]
    folder = write_run("sst2-magnitude-0.1-s0", "magnitude", 0.1, 0.5, lines=other).parent
    figure = made(steps(read_folder(folder)))
    axis = figure.draw().axes[1]
    assert axis.get_title() == "threshold (share of its largest)"
    drawn = sorted(tuple(line.get_ydata()) for line in axis.get_lines())
    assert drawn == [(-0.25, -1.0), (0.25, 1.0)]
    assert -2.0 in {row[4] for row in figure.data}  # the data have them as they are


def test_an_unfinished_run_is_shown_as_far_as_it_came(write_run: WriteRun) -> None:
    runs = read_folder(write_run("sst2-l0-0.1-s0", "l0", 0.1, None, lines=LINES))
    assert "Not finished, shown as far as it came: sst2-l0-0.1-s0." in made(steps(runs)).caption


def test_a_dense_run_alone_has_its_loss(write_run: WriteRun) -> None:
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    figure = made(steps(read_folder(write_run("sst2-dense-s0", "dense", None, 0.5, lines=lines))))
    assert [axis.get_title() for axis in figure.draw().axes] == ["loss"]


def test_mask_changes_have_a_place_for_zero(write_run: WriteRun) -> None:
    runs = read_folder(write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, lines=LINES))
    figure = made(mask_changes(runs))
    assert [row[2:] for row in figure.data] == [(20, 0.02), (30, 0.0)]
    assert "l0: less than 0.1 % of the kept weights from step 30 on." in figure.caption
    canvas = figure.draw()
    canvas.draw_without_rendering()
    labels = [tick.get_text() for tick in canvas.axes[0].get_yticklabels()]
    assert "0" in labels
    assert "1 %" in labels


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ([0.1, 0.05], "l0 still changes 50 % of the kept weights at the end."),
        ([0.0, 0.0], "l0: less than 0.1 % of the kept weights from step 1 on."),
        # At a tenth: 0.05 % of all weights is 0.5 % of the kept ones.
        ([0.5, 0.0005, 0.00005], "l0: less than 0.1 % of the kept weights from step 3 on."),
    ],
)
def test_when_the_mask_settles(write_run: WriteRun, changed: list[float], told: str) -> None:
    lines = [{"step": step, "mask_changed": share, "density": 0.1} for step, share in enumerate(changed, 1)]
    figure = made(mask_changes(read_folder(write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, lines=lines))))
    assert told in figure.caption
    assert figure.png()


def test_runs_of_an_older_version_have_no_changes(write_run: WriteRun) -> None:
    lines = [{"step": 1, "density": 0.9}]
    why = mask_changes(read_folder(write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, lines=lines)))
    assert isinstance(why, str)
    assert "older versions" in why
