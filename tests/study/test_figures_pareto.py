"""Score against size and latency, and the front."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fineprune.study.figures.pareto import front, pareto
from fineprune.study.figures.style import Figure
from fineprune.study.study_folder import read_folder

WriteRun = Callable[..., Path]


def made(figure: Figure | str) -> Figure:
    assert isinstance(figure, Figure)
    return figure


def sizes(megabytes: float) -> dict[str, Any]:
    size = int(megabytes * 1e6)
    packed = {"float32": size, "float16": size // 2, "int8": size // 4}
    return {"packed_bytes": packed, "dense_bytes": 40_000_000}


def bench(threads: int = 1, **milliseconds: float) -> dict[str, Any]:
    names = {"engine": "engine float32", "torch": "torch"}
    rows = [
        {
            "peer": names[peer],
            "model": None,
            "wrong": False,
            "timing": {"milliseconds": time, "ratio": 1.0, "low": 1.0, "high": 1.0},
        }
        for peer, time in milliseconds.items()
    ]
    about = {"machine": {"processor": "A CPU", "threads": threads}, "batch": 1, "length": 128}
    return about | {"file_bytes": 5, "rows": rows}


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 50), (2, 60), (3, 55), (4, 70)], [0, 1, 3]),
        ([(4, 70), (1, 70)], [1]),  # as good and cheaper
        ([(2, 60), (2, 65)], [1]),  # as cheap and better
        ([(2, 60), (2, 60)], [0]),  # equal
        ([(3, 10), (2, 20), (1, 30)], [2]),
        ([], []),
    ],
)
def test_front(points: list[tuple[float, float]], best: list[int]) -> None:
    assert front(points) == best


def test_what_learned_nothing_is_not_on_the_front(write_run: WriteRun) -> None:
    write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.8, more=sizes(10))
    constant = sizes(5) | {"constant": True}
    folder = write_run("sst2-magnitude-0.1-s0", "magnitude", 0.1, 0.9, more=constant).parent
    figure = made(pareto(read_folder(folder)))
    columns = [figure.header.index(name) for name in ("method", "front")]
    assert [tuple(row[column] for column in columns) for row in figure.data] == [
        ("magnitude", False),
        ("movement", True),
    ]
    assert "Hollow: runs that learned nothing" in figure.caption
    (marker,) = [line for line in figure.draw().axes[0].get_lines() if line.get_markerfacecolor() == "none"]
    assert marker.get_xdata()[0] == pytest.approx(figure.data[0][figure.header.index("value")])


def test_means_over_seeds_and_the_front_are_in_the_data(write_run: WriteRun) -> None:
    write_run("sst2-dense-s0", "dense", None, 0.9, more=sizes(39), bench=bench(torch=50.0, engine=45.0))
    write_run(
        "sst2-movement-0.1-s0", "movement", 0.1, 0.8, more=sizes(10), bench=bench(torch=49.0, engine=5.0)
    )
    write_run("sst2-movement-0.1-s1", "movement", 0.1, 0.7, more=sizes(12))
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.6, more=sizes(12)).parent
    figure = made(pareto(read_folder(folder)))
    columns = [figure.header.index(name) for name in ("cost", "method", "value", "score", "front")]
    assert [tuple(row[column] for column in columns) for row in figure.data] == [
        ("size", "dense", 40.0, 90.0, True),  # as it is, not packed
        ("size", "l0", 12.0, 60.0, False),
        ("size", "movement", 11.0, 75.0, True),
        ("latency", "dense", 50.0, 90.0, True),  # in torch
        ("latency", "movement", 5.0, 75.0, True),
    ]
    assert "1 × 128 tokens, 1 thread, A CPU" in figure.caption
    assert "Not timed: 2 runs." in figure.caption


def test_without_bench_there_is_one_panel(write_run: WriteRun) -> None:
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.6, more=sizes(12)).parent
    figure = made(pareto(read_folder(folder)))
    (axis,) = figure.draw().axes
    assert axis.get_xlabel() == "size of the weights (MB)"
    assert "No run was timed: fineprune bench RUN times one." in figure.caption


def test_a_task_of_one_setting_is_named_where_others_are_drawn(write_run: WriteRun) -> None:
    write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.6, more=sizes(12))
    write_run("sst2-l0-0.03-s0", "l0", 0.03, 0.5, more=sizes(6))
    folder = write_run("mrpc-l0-0.1-s0", "l0", 0.1, 0.6, more=sizes(12)).parent
    figure = made(pareto(read_folder(folder)))
    (axis,) = figure.draw().axes
    assert axis.get_title() == "sst2"
    assert "only one setting was run: mrpc." in figure.caption
    assert [row[0] for row in figure.data] == ["mrpc", "sst2", "sst2"]


def test_points_of_the_front_have_their_density_beside_them(write_run: WriteRun) -> None:
    write_run("sst2-l0-0.03-s0", "l0", 0.03, 0.5, more=sizes(5))
    write_run("sst2-l0-0.1-distilled-s0", "l0", 0.1, 0.7, more=sizes(9))
    folder = write_run(
        "sst2-movement-0.1-global-s0", "movement", 0.1, 0.9, scope="global", more=sizes(20)
    ).parent
    texts = {text.get_text() for text in made(pareto(read_folder(folder))).draw().axes[0].texts}
    assert texts == {"3 %", "10 % +", "10 % global"}


def test_runs_that_were_timed_otherwise_are_not_compared(write_run: WriteRun) -> None:
    for seed, threads in ((0, 1), (1, 1), (2, 8)):
        name = f"sst2-l0-0.{seed + 1}-s{seed}"
        folder = write_run(name, "l0", (seed + 1) / 10, 0.6, bench=bench(threads, engine=5.0 + seed)).parent
    figure = made(pareto(read_folder(folder)))
    assert sorted(row[7] for row in figure.data) == [5.0, 6.0]  # type: ignore[type-var]
    assert "1 runs were timed otherwise" in figure.caption


def test_wrong_and_stale_times_are_not_shown(write_run: WriteRun) -> None:
    wrong = bench(engine=5.0)
    wrong["rows"][0]["wrong"] = True
    write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.6, more=sizes(9), bench=wrong)
    stale = write_run("sst2-l0-0.3-s0", "l0", 0.3, 0.7, more=sizes(9), bench=bench(engine=6.0))
    (stale / "model" / "model.safetensors").write_bytes(b"other weights")
    assert {row[1] for row in made(pareto(read_folder(stale.parent))).data} == {"size"}
    (stale / "model" / "model.safetensors").write_bytes(b"timed")
    assert [row[7] for row in made(pareto(read_folder(stale.parent))).data if row[1] == "latency"] == [6.0]


def test_runs_of_an_older_version_that_were_not_timed_have_none(write_run: WriteRun) -> None:
    why = pareto(read_folder(write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.6)))
    assert isinstance(why, str)
    assert "older versions" in why
