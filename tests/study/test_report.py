"""The page of a run and of a study: its numbers are those of the files, and nothing on it breaks it."""

import json
import shutil
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from study.reports import Page, make_bench, make_record, make_run, opened, said, value
from support import call

from fineprune import FinepruneError
from fineprune._files import write_text
from fineprune.study.grouping import Row, groups
from fineprune.study.report import make_report, write_report
from fineprune.study.study_folder import read_folder
from fineprune.study.tables import tables

MARKUP = "<script>alert(1)</script>"
TINY = make_record(16, 2, 0.1)


@pytest.fixture
def study(tmp_path):
    """Two tasks; the first with dense runs of two seeds and two methods at two densities."""
    folder = tmp_path / "study"
    for seed, score in enumerate((0.9, 0.86)):
        make_run(folder / f"a-dense-s{seed}", "dense", score=score, seed=seed)
    scores = {("movement", 0.1): (0.8, 0.78), ("l0", 0.1): (0.81, 0.76), ("l0", 0.03): (0.7, 0.71)}
    for (method, density), values in scores.items():
        for seed, score in enumerate(values):
            name = f"a-{method}-{density}-s{seed}"
            make_run(folder / name, method, density, score, seed, record=TINY)
    make_run(folder / "b-movement-0.1-s0", score=0.5)
    return folder


@pytest.fixture
def plain(monkeypatch):
    """Pages without figures, which take seconds, where the test is of something else."""
    monkeypatch.setattr("fineprune.study.figures.drawings", lambda runs: [])


@pytest.fixture
def run(study):
    return study / "a-movement-0.1-s1"


@pytest.mark.usefixtures("plain")
def test_a_runs_numbers_are_those_of_its_files(run):
    results = json.loads((run / "results.json").read_text())
    make_bench(run, {"torch": 1.0, "engine float32": 5.0, "engine int8": 9.0, "OpenVINO": 30.0})
    page = Page(write_report(run))
    for name in ("score", "density"):
        assert value(page, name) == results[name]
    assert value(page, "packed_bytes") == results["packed_bytes"]["float32"]
    assert value(page, "ratio") == 9.0
    assert "9.0× as fast as torch on the same weights, in int8 (8.1× to 9.9×)" in said(page, "ratio")
    assert "2.22 ms for 1 × 128 tokens, 1 thread, Some Processor 3" in said(page, "ratio")
    assert "what fineprune compact writes with float32 values; model/ stores zeros in full" in page.text
    assert "the score is that of float32" in said(page, "ratio")
    left, every = results["parameters"] - results["total"] + results["kept"], results["parameters"]
    assert f"{left:,} of all {every:,} parameters ({100 * left / every:.1f}" in said(page, "density")
    assert "of 12.4 MB dense: 25.0 %" in said(page, "packed_bytes")
    assert "2.0 MB as float16, 1.5 MB as int8" in page.text
    assert "Density is the share of the weights in the pruned matrices that is not zero" in page.text
    assert f"{results['kept']:,} of {results['total']:,} weights" in said(page, "density")
    # Against the dense run of the same seed, not the other one.
    assert said(page, "lost") == "Against dense −8.0 points dense: 86.0 % 90.7 % of the dense score"
    assert value(page, "lost") == pytest.approx(0.78 - 0.86)

    lines = page.table("Scores on the validation data")
    found = {line[0].text: [json.loads(cell.attributes["data-value"]) for cell in line[1:]] for line in lines}
    assert found == {"loss": [0.4375, 0.4375], "accuracy": [0.78, 0.86]}


@pytest.mark.usefixtures("plain")
def test_a_map_has_each_matrix_with_its_density_and_its_mask(run):
    page = Page(write_report(run))
    cells = page.all("button", data_map="0")
    (masks,) = page.masks
    assert len(cells) == len(masks) == len(TINY.matrices) == 12
    for cell, mask, matrix in zip(cells, masks, TINY.matrices, strict=True):
        assert int(cell.attributes["data-matrix"]) == masks.index(mask)
        assert json.loads(cell.attributes["data-density"]) == matrix.density
        assert cell.text == f"{100 * matrix.density:.1f}"
        told = (mask["name"], tuple(mask["shape"]), mask["kept"], mask["total"])
        assert told == (matrix.name, matrix.shape, matrix.kept, matrix.shape[0] * matrix.shape[1])
        opacity = np.array(opened(mask["picture"]))[..., 3]
        assert opacity.shape == matrix.picture.shape
        assert ((opacity > 0) == (matrix.picture > 0)).all()
    headings = [cell.text for cell in page.all("th", scope="col")]
    kinds = ["layer", "Q", "K", "V", "O", "FFN in", "FFN out"]
    assert headings[-len(kinds) :] == kinds


def test_a_studys_numbers_are_those_of_its_files(study):
    page = Page(write_report(study))
    runs = read_folder(study)
    rows = [Row(run.cell, run.results) for run in runs]

    lines = page.table("Each run")
    assert [line[0].text for line in lines] == [run.name for run in runs]
    names = ("score", "density", "kept", "total", "steps", "seconds")
    for line, entry in zip(lines, runs, strict=True):
        values = [json.loads(cell.attributes["data-value"]) for cell in line[2:]]
        sizes = [entry.results["packed_bytes"]["float32"], entry.results["dense_bytes"]]
        assert values == [*(entry.results[name] for name in names), *sizes]

    for table in tables(rows):
        shown = [[cell.text for cell in line] for line in page.table(table.title)]
        assert shown == [list(line) for line in table.lines]
        bold = {
            (line, column)
            for line, cells in enumerate(page.table(table.title))
            for column, cell in enumerate(cells)
            if "best" in (cell.attributes["class"] or "")
        }
        assert bold == table.best

    best = page.table("The best at each density")
    told = [[cell.text for cell in line[:3]] for line in best]
    # By the mean: one seed of l0 is the best of all at 10 %.
    assert told == [
        ["a", "dense", "dense"],
        ["a", "10 %", "movement"],
        ["a", "3 %", "l0"],
        ["b", "10 %", "movement"],
    ]
    means = {group.cell.name: group.mean("accuracy") for group in groups(rows)}
    found = [json.loads(line[3].attributes["data-value"]) for line in best]
    assert found == [
        means[name] for name in ("a-dense-s0", "a-movement-0.1-s0", "a-l0-0.03-s0", "b-movement-0.1-s0")
    ]
    assert best[1][5].text == "−9.0"  # points: 79 of 88
    assert "10 runs" not in page.text
    assert "9 runs: 9 finished" in page.text
    assert "File size: float32 values, as fineprune compact writes them" in page.text
    assert "Not measured of these runs: speed." in page.text
    assert [code.text for code in page.all("code")] == [f"fineprune bench {study}/RUN"]
    assert "One seed each" not in page.text
    share = (runs[-1].results["parameters"] - 90) / runs[-1].results["parameters"]
    assert json.loads(best[3][8].attributes["data-value"]) == pytest.approx(share)  # of all parameters
    assert "cannot be made" not in page.text


@pytest.mark.usefixtures("plain")
def test_the_maps_of_a_study_are_of_the_best_at_the_lowest_density(study, monkeypatch):
    page = Page(write_report(study))
    assert [option.text for option in page.all("option")] == []  # one run: nothing to choose
    assert "a: l0, 3 % density, seed 1" in page.text
    make_run(study / "a-movement-0.03-s0", density=0.03, score=0.9, record=TINY)
    page = Page(write_report(study))
    assert [option.text for option in page.all("option")] == ["a-movement-0.03-s0", "a-l0-0.03-s1"]
    assert len(page.masks) == 2
    monkeypatch.setattr("fineprune.study.report.pictures.ROOM", 10)
    assert len(Page(write_report(study)).masks) == 1


def test_figures_are_on_the_page_and_beside_it(study, tmp_path):
    made = make_report(study, tmp_path / "elsewhere" / "a page.html")
    page = Page(made.path)
    links = [link.attributes["href"] for link in page.all("a") if link.attributes["href"].endswith(".csv")]
    assert len(links) == made.figures == len(page.all("figure")) > 0
    assert all((made.path.parent / unquote(link)).is_file() for link in links)
    assert all(link.startswith("a%20page-figures/") for link in links)
    assert not (made.path.parent / "figures").exists()
    assert not (study / "figures").exists()
    assert not (study / "report.html").exists()
    assert len([element for element in page.all("svg") if "viewbox" in element.attributes]) >= made.figures


def test_nothing_comes_from_elsewhere(study):
    page = Page(write_report(study))
    (policy,) = [meta.attributes["content"] for meta in page.all("meta") if "http-equiv" in meta.attributes]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    for element in page.elements:
        for name in ("src", "href", "xlink:href", "action"):
            target = element.attributes.get(name) or ""
            assert "//" not in target or target.startswith("data:"), target
    assert "@import" not in page.html
    assert "url(http" not in page.html


def test_markup_in_names_labels_and_errors_is_text(tmp_path):
    folder = tmp_path / "a & <b>"
    make_run(folder / "x & <i>", record=TINY, task={"kind": MARKUP, "labels": [MARKUP]})
    make_run(folder / "other #1?", results={"metric": MARKUP, "scores": {MARKUP: 0.5}})
    (folder / "failures.jsonl").write_text(json.dumps({"run": MARKUP, "error": MARKUP}) + "\n")
    write_report(folder / "other #1?")
    for path in (write_report(folder), write_report(folder / "x & <i>")):
        page = Page(path)
        assert [element.attributes.get("id") for element in page.all("script")] == ["masks", None]
        assert not page.all("b")
        assert not page.all("i")
        assert MARKUP in page.text
    page = Page(folder / "report.html")
    assert "a & <b>" in page.text
    assert "other%20%231%3F/report.html" in [link.attributes["href"] for link in page.all("a")]


@pytest.mark.usefixtures("plain")
def test_a_half_character_does_not_stop_the_page(tmp_path):
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["environment"] = {"system": "\ud800"}
    (run / "results.json").write_text(json.dumps(results))
    assert "system" in Page(write_report(run)).text


def test_an_empty_folder(tmp_path):
    page = Page(write_report(tmp_path))
    assert "No runs are in this folder" in page.text
    assert "dense run has no masks" not in page.text
    assert not page.all("section", id="map")
    assert not page.all("section", id="settings")
    assert "Settings" not in page.text
    assert not page.all("figure")
    assert not (tmp_path / "figures").exists()


def test_what_is_missing_is_said_and_the_rest_shown(study):
    cut = study / "a-l0-0.1-s0"
    (cut / "results.json").unlink()
    (study / "a-l0-0.1-s1" / "weights.npz").write_bytes(b"no record")
    (study / "a-l0-0.03-s0" / "results.json").write_text("{")
    (study / "a-dense-s1" / "recipe.yaml").write_text("a: [")
    (study / "a-dense-s0" / "bench.json").write_text("[]")
    shutil.rmtree(study / "a-l0-0.03-s1")
    lines = [{"run": "a-l0-0.03-s1", "error": "no room"}, {"run": cut.name, "error": "killed"}]
    (study / "failures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(study))
    assert "9 runs: 6 finished, 1 not finished, 2 failed" in page.text
    states = {line[0].text: line[1].text for line in page.table("Each run")}
    assert states["a-l0-0.03-s1"] == "failed: no room"
    assert states[cut.name] == "failed: killed"
    assert states["a-l0-0.03-s0"] == "not finished: step 40 of 40"
    for note in (
        "not finished: there is no results.json (a-l0-0.1-s0)",
        "results.json: cannot be read",
        "recipe.yaml: cannot be read",
        "bench.json: is no mapping (a-dense-s0)",
        "weights.npz: cannot be read",
    ):
        assert note in page.text

    page = Page(write_report(cut))
    assert value(page, "score") is None
    assert "failed" in page.text
    assert "killed" in page.text
    assert f"fineprune run {cut}/recipe.yaml --out {cut} --resume" in page.text
    assert "cannot be made" not in page.text


@pytest.mark.parametrize("results", [{}, {"packed_bytes": {"float32": "some"}, "dense_bytes": None}])
@pytest.mark.usefixtures("plain")
def test_older_runs_were_not_measured(tmp_path, results):
    run = make_run(tmp_path / "run", results={"packed_bytes": None, **results})
    page = Page(write_report(run))
    assert "not measured" in said(page, "packed_bytes")
    assert f"fineprune compact {run} {run}/compact" in said(page, "packed_bytes")
    assert f"not measured this measures it: fineprune bench {run}" in said(page, "ratio")
    command = f"fineprune run {run}/recipe.yaml pruning=null --out {run}-dense"
    assert f"no dense run to compare with; this trains one: {command}" in said(page, "lost")
    assert "No finished run has its masks with it (weights.npz)" in page.text
    make_bench(run, {"torch": 1.0, "engine int8": 9.0}, wrong=["engine int8"])
    assert "no right answer of the engine" in said(Page(write_report(run)), "ratio")
    make_bench(run, {"torch": 1.0, "engine int8": 9.0})
    (run / "model").mkdir()
    (run / "model" / "model.safetensors").write_bytes(b"other than measured")
    assert "no right answer of the engine" in said(Page(write_report(run)), "ratio")


@pytest.mark.usefixtures("plain")
def test_a_dense_run_has_no_masks(study):
    page = Page(write_report(study / "a-dense-s0"))
    assert "A dense run has no masks" in page.text
    assert "nothing is pruned" in said(page, "density")


def test_a_figure_that_breaks_is_said_and_costs_nothing_else(run, monkeypatch):
    from fineprune.study.figures import Figure

    before = len(Page(write_report(run)).all("figure"))

    def broken(self):
        if self.name == "steps":
            raise ZeroDivisionError("by <nothing>")
        return whole(self)

    whole = Figure.svg
    monkeypatch.setattr(Figure, "svg", broken)
    page = Page(write_report(run))
    assert len(page.all("figure")) == before - 1
    assert "figure steps: cannot be made (ZeroDivisionError: by <nothing>)" in page.text


def test_a_maker_that_breaks_is_run_once_and_costs_nothing_else(run, monkeypatch):
    from fineprune.study import figures

    before, calls = len(Page(write_report(run)).all("figure")), []

    def broken(runs):
        calls.append(runs)
        raise ZeroDivisionError

    monkeypatch.setitem(figures._OF_A_RUN, "over the steps", broken)
    page = Page(write_report(run))
    assert len(page.all("figure")) == before - 1
    assert "figure over the steps: cannot be made (ZeroDivisionError" in page.text
    assert len(calls) == 1


@pytest.mark.usefixtures("plain")
def test_a_page_is_there_whole_or_not_at_all(run, monkeypatch, tmp_path):
    with pytest.raises(FinepruneError, match="no such folder"):
        write_report(tmp_path / "none")
    with pytest.raises(FinepruneError, match="cannot be written"):
        write_report(run, run / "results.json" / "page.html")
    with pytest.raises(FinepruneError, match="cannot be written"):
        write_report(run, tmp_path)
    path = write_report(run)
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fineprune._files.os.replace", full)
    with pytest.raises(FinepruneError, match="No space left"):
        write_report(run)
    assert path.read_text() == before


@pytest.mark.parametrize(("size", "place"), [(10, "report.html"), (5_000, "figures")])
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    size, place, before, run, full_disk, capsys, monkeypatch, names
):
    def figure():
        def save(folder):
            write_text(folder / "one.csv", "1" * (size + before))

        return SimpleNamespace(name="one", title="", caption="", save=save, svg=lambda: "<svg/>", sentence="")

    monkeypatch.setattr("fineprune.study.figures.drawings", lambda runs: [("one", figure)])
    if before:
        (run / "figures").mkdir()
        (run / "figures" / "one.csv").write_text("as it was")
    held = names(run)
    full_disk()
    assert call("report", run) == 2
    full_disk(False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fineprune: {run / place}: cannot be written (File too large)")
    assert names(run) == held
    if before:
        assert (run / "figures" / "one.csv").read_text() == "as it was"
    assert call("report", run) == 0
    assert (run / "figures" / "one.csv").stat().st_size == size + before


@pytest.mark.usefixtures("plain")
def test_the_command(study, capsys, tmp_path):
    assert call("report", study / "a-dense-s0", "-o", tmp_path / "page.html") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'page.html'}: ")
    assert (tmp_path / "page.html").is_file()
    assert call("report", tmp_path / "none") == 2
    assert "no such folder" in capsys.readouterr().err
