"""Figures as files, and which there are: of no run, of one, of a study, of broken ones."""

import csv
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from fineprune.config import METHODS
from fineprune.study.figures import Figure, drawings
from fineprune.study.figures.style import (
    densities_axis,
    handle,
    legend,
    listed,
    panels,
    percent,
    short,
    style,
)
from fineprune.study.study_folder import RunFolder, read_folder
from fineprune.training.run.mask_snapshot import Record

WriteRun = Callable[..., Path]


def figures(runs: Sequence[RunFolder]) -> list[Figure]:
    return [made for _, make in drawings(runs) if isinstance(made := make(), Figure)]


def missing(runs: Sequence[RunFolder]) -> list[str]:
    return [f"{what}: {made}" for what, make in drawings(runs) if isinstance(made := make(), str)]


def plain(name: str = "plain", title: str = "A title", label: str = "movement") -> Figure:
    def draw() -> Canvas:
        canvas, (left, right) = panels(2)
        left.plot([1, 2], [1, 2], clip_on=True)
        left.set_title(label)
        right.scatter([1, 2], [1, 2], rasterized=True)
        legend(canvas, [(handle("movement"), label)])
        return canvas

    return Figure(name, title, "A caption.", ("a", "b"), [(1, 0.1), (None, "x,y")], draw)


def lines_of(method: str) -> list[dict[str, Any]]:
    more = {"lambda": 3.0, "penalty": 0.1} if METHODS[method].takes_penalty else {}
    return [
        {"step": 1, "loss": 0.9, "density": 1.0, **more},
        {"step": 2, "loss": 0.8, "density": 0.5, "threshold": 0.1, "mask_changed": 0.25, **more},
        {"step": 3, "loss": 0.7, "density": 0.1, "threshold": 0.2, "mask_changed": 0.0, **more},
    ]


@pytest.fixture
def study(write_run: WriteRun, tiny_record: Callable[..., Record]) -> Path:
    """Two methods at two densities, with a teacher, globally, and a dense run."""
    config = {"num_attention_heads": 2}
    sizes = {"packed_bytes": {"float32": 4000, "float16": 2000, "int8": 1000}, "dense_bytes": 9000}
    write_run("sst2-dense-s0", "dense", None, 0.9, config=config, more=sizes)
    for method in ("magnitude", "movement"):
        for density in (0.03, 0.1):
            for scope, part in ((None, ""), ("global", "-global"), (None, "-distilled")):
                write_run(
                    f"sst2-{method}-{density:g}{part}-s0",
                    method,
                    density,
                    0.7 + density,
                    scope=scope,
                    config=config,
                    lines=lines_of(method),
                    record=tiny_record(scored=method == "movement"),
                    more=sizes,
                )
    return next(iter((write_run("sst2-l0-0.1-s0", "l0", 0.1, None)).parents))


def test_a_study_has_every_figure(study: Path) -> None:
    runs = read_folder(study)
    assert [figure.name for figure in figures(runs)] == [
        *("score-by-density", "score-by-density-distilled", "scopes", "pareto"),
        *("weights", "remaining-weights", "density-by-layer", "steps", "mask-changes", "empty"),
    ]
    assert missing(runs) == []


def test_every_figure_is_xml_alone_and_keeps_its_ids_to_itself(study: Path) -> None:
    seen: set[str] = set()
    for figure in figures(read_folder(study)):
        text = figure.svg()
        root = ElementTree.fromstring(text)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert ids
        assert len(set(ids)) == len(ids)
        assert not seen & set(ids)
        assert all(str(one).startswith(f"{figure.name}-") for one in ids)
        seen |= set(map(str, ids))
        used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text)
        assert {one or other for one, other in used} <= set(ids)
        linked = [
            value for element in root.iter() for name, value in element.items() if name.endswith("href")
        ]
        assert all(value.startswith(("#", "data:")) for value in linked)
        assert len(text) < 300_000


def test_a_figure_drawn_twice_is_the_same_bytes(study: Path) -> None:
    made = {figure.name: figure for figure in figures(read_folder(study))}
    for name in ("score-by-density", "weights", "pareto"):
        again = replace(made[name])  # without what it has drawn
        assert again.svg() == made[name].svg()
    assert made["pareto"].png() == made["pareto"].png()


def test_the_svg_for_a_page_takes_the_pages_colors_and_size() -> None:
    text = plain(title='A "title" <b>').svg()
    root = ElementTree.fromstring(text)
    assert text.startswith("<svg")
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("height") is None
    assert root.get("aria-label") == 'A "title" <b>'
    assert "currentColor" in text
    assert "#010203" not in text
    assert "#ffffff" not in text
    assert "<style" not in text  # it would hold for all of the page


def test_labels_with_markup_are_drawn_as_they_are() -> None:
    label = 'a $x_{1$ <b>&amp; "q" \\frac id="x" #010203'
    figure = plain(label=label)
    texts = [element.text for element in ElementTree.fromstring(figure.svg()).iter() if element.text]
    assert texts.count(label) == 2
    assert figure.png().startswith(b"\x89PNG")


def test_save_writes_three_files_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "figures"
    plain().save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["plain.csv", "plain.png", "plain.svg"]
    assert (folder / "plain.csv").read_text() == 'a,b\n1,0.1\n,"x,y"\n'
    svg = (folder / "plain.svg").read_text()
    assert ElementTree.fromstring(svg).get("width")
    assert "currentColor" not in svg
    assert "#ffffff" in svg
    assert (folder / "plain.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plain().svg()
    assert dict(matplotlib.rcParams) == before


def test_figures_save_their_data(study: Path, tmp_path: Path) -> None:
    made = figures(read_folder(study / "sst2-movement-0.1-s0"))
    for figure in made:
        figure.save(tmp_path / "drawn")
    assert {path.stem for path in (tmp_path / "drawn").iterdir()} == {figure.name for figure in made}
    for figure in made:
        with (tmp_path / "drawn" / f"{figure.name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == figure.header
        assert len(rows) == len(figure.data)
        assert all(len(row) == len(header) for row in rows)


def test_a_single_run_has_no_comparison(study: Path) -> None:
    runs = read_folder(study / "sst2-movement-0.1-s0")
    assert [figure.name for figure in figures(runs)] == [
        *("weights", "remaining-weights", "density-by-layer", "steps", "mask-changes", "empty")
    ]
    for figure in figures(runs):
        assert "sst2-movement-0.1-s0" in figure.caption


def test_no_runs_have_no_figures_and_every_one_is_told() -> None:
    assert figures([]) == []
    said = missing([])
    assert len(said) == 10
    assert "weights before and after: there is no pruned run" in said


def test_dense_and_unfinished_runs_alone_say_what_is_missing(write_run: WriteRun) -> None:
    write_run("sst2-dense-s0", "dense", None, 0.9)
    folder = write_run("sst2-movement-0.1-s0", "movement", 0.1, None, lines=[])
    runs = read_folder(folder.parent)
    assert figures(runs) == []
    said = missing(runs)
    assert "score by density: no pruned run without a teacher is finished" in said
    assert "the remaining weights: no pruned run is finished" in said


def test_runs_with_strange_content_are_drawn_as_far_as_they_go(
    write_run: WriteRun, tiny_record: Callable[..., Record]
) -> None:
    record = tiny_record(names=("strange",), scored=True)
    nan = replace(record, before=np.where(record.kept, np.nan, record.before).astype(np.float32))
    lines = [
        {"step": "one", "loss": 1.0},
        {"loss": 2.0, "density": 0.5},
        {"step": 1, "loss": math.nan, "density": None, "mask_changed": 0.0},
        {"step": 2, "loss": 0.5, "density": 0.1, "threshold": math.inf, "mask_changed": 0.0},
    ]
    folder = write_run(
        "$x^-movement-0.1-s0", "movement", 0.1, 0.5, record=nan, lines=lines, bench={"rows": [3]}
    )
    (write_run("$x^-movement-0.03-s0", "movement", 0.03, 0.5) / "weights.npz").write_bytes(b"broken")
    for runs in (read_folder(folder.parent), read_folder(folder)):
        for figure in figures(runs):
            ElementTree.fromstring(figure.svg())
            assert figure.png()
        assert any("empty heads and neurons: neither" in line for line in missing(runs))


def test_every_method_has_a_look_of_its_own() -> None:
    looks = [style(method) for method in METHODS]
    assert len({(look.color, look.dash) for look in looks}) == len(looks)
    assert len({look.marker for look in looks}) == len(looks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ground", ["#ffffff", "#121212"])
def test_colors_are_seen_on_white_and_on_near_black(method: str, ground: str) -> None:
    lighter, darker = sorted((luminance(style(method).color), luminance(ground)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def luminance(color: str) -> float:
    """Of WCAG."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_ticks_of_a_density_axis_are_those_measured() -> None:
    canvas, (axis,) = panels(1)
    densities_axis(axis, [0.03, 0.1, 0.7])
    canvas.draw_without_rendering()
    labels = [tick.get_text() for tick in axis.get_xticklabels()]
    assert {"3 %", "10 %", "70 %"} <= set(labels)
    assert len(labels) < 10


@pytest.mark.parametrize(
    ("share", "text"), [(0.03, "3 %"), (0.1, "10 %"), (0.125, "12.5 %"), (0.005, "0.5 %"), (1.0, "100 %")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_short_is_one_line_that_fits() -> None:
    assert short("a\nb\tc") == "a b c"
    assert short("x" * 50, 10) == "x" * 9 + "…"


def test_listed_names_the_first() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcd", most=2, between="; ") == "a; b and 2 more"


def test_labels_in_other_scripts_do_not_warn() -> None:
    figure = plain(label="日本語")
    assert "日本語" in figure.svg()
    assert figure.png()


def test_a_record_of_nothing_is_drawn(write_run: WriteRun, tiny_record: Callable[..., Record]) -> None:
    record = tiny_record()
    none = np.zeros(0, np.float32)
    nothing = replace(
        record, matrices=record.matrices[:1], counts=record.counts * 0, before=none, after=none, kept=none > 0
    )
    drawn = {
        figure.name: figure
        for figure in figures(read_folder(write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, record=nothing)))
    }
    for figure in drawn.values():
        ElementTree.fromstring(figure.svg())
    assert drawn["weights"].data == []
    remaining = drawn["remaining-weights"]
    assert "nothing remains" in remaining.svg()
    assert {row["count"] for row in csv.DictReader(remaining.csv().splitlines())} == {"0"}
    assert "density-by-layer" in drawn
