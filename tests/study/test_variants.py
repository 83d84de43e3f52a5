"""Runs are seeds of one setting only if nothing else differs; other settings are rows, named by them."""

import json
import os
from pathlib import Path

import pytest
import yaml
from study.reports import Page, make_run, said

from fineprune.study.command import _without_newest_page
from fineprune.study.figures.curves import score_by_density
from fineprune.study.grid import Cell, Run
from fineprune.study.grouping import Row, groups, share
from fineprune.study.report import write_report
from fineprune.study.rows import collect
from fineprune.study.study_folder import read_folder
from fineprune.study.tables import as_csv, tables
from fineprune.study.variants import settings_of

DATA = {"kind": "classification", "train": "data/reviews/train.tsv"}


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """Pages without figures, which take seconds."""
    monkeypatch.setattr("fineprune.study.figures.drawings", lambda runs: [])


def written(folder: Path, given: dict[str, dict], **more) -> Path:
    """A run whose recipe has these sections besides its own, and whose results have `more`."""
    names = [name for name in ("method", "score", "seed", "model") if name in more]
    make_run(folder, task=DATA, **{name: more.pop(name) for name in names})
    results = json.loads((folder / "results.json").read_text()) | more
    for section, values in given.items():
        results["recipe"][section] = (results["recipe"].get(section) or {}) | values
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(results["recipe"]))
    return folder


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ({"training": {"steps": 150}}, {"training": {"steps": 1220}}, ("150 steps", "1,220 steps")),
        ({"training": {"steps": None, "epochs": 3}}, {}, ("3 epochs", "40 steps")),
        (
            {"training": {"learning_rate": 2e-4, "weight_decay": 0.1}},
            {"training": {"learning_rate": 3e-4, "weight_decay": 0.2}},
            ("learning_rate 0.0002", "learning_rate 0.0003"),  # the shortest that tells them apart
        ),
        ({"training": {"precision": "bfloat16"}}, {}, ("precision bfloat16", "precision float32")),
        ({"training": {"max_length": 64}}, {}, ("max_length 64", "max_length 128")),
        ({"training": {"keep_best": True}}, {}, ("keep_best true", "keep_best false")),
        ({"pruning": {"score_lr": 0.1}}, {}, ("score_lr 0.1", "score_lr none")),
        ({"pruning": {"warmup": 5}}, {"pruning": {"warmup": 6}}, ("pruning warmup 5", "pruning warmup 6")),
        (
            {"distillation": {"teacher": "x/t", "alpha": 0.5}},
            {"distillation": {"teacher": "x/t"}},
            ("alpha 0.5", "alpha 0.9"),
        ),
        (
            {"distillation": {"teacher": "x/a/model"}},
            {"distillation": {"teacher": "x/b"}},
            ("teacher x/a", "teacher x/b"),
        ),
        (
            {"distillation": {"teacher": "x/b/c"}},
            {"distillation": {"teacher": "y/b/c"}},
            ("teacher b/c", "teacher b/c (2)"),
        ),
        (
            {"dense": {"steps": 300}},
            {"dense": {"steps": 400}},
            ("from dense, 300 steps", "from dense, 400 steps"),
        ),
        (
            {"refine": {"steps": 300, "fill": 0.01}},
            {"refine": {"steps": 300}},
            ("filled, 300 steps", "refined, 300 steps"),
        ),
        (
            {"refine": {"steps": 300, "hold_zeros": True}},
            {},
            ("refined, zeros held, 300 steps", None),
        ),
        ({"dense": {"steps": 9, "seed": 0}}, {"dense": {"steps": 9, "seed": 1}}, (None, None)),
        # No difference: defaults, what changes no result, and a teacher for each seed.
        ({"training": {"precision": "float32"}}, {}, (None, None)),
        ({"training": {"evaluate_every": 5}}, {}, (None, None)),
        ({"distillation": {"teacher": "t", "cache": True}}, {"distillation": {"teacher": "t"}}, (None, None)),
        ({"distillation": {"teacher": "x/d-s0"}}, {"distillation": {"teacher": "x/d-s1"}}, (None, None)),
        ({"model": {"trust_remote_code": True}}, {}, (None, None)),
    ],
)
def test_rows_are_named_by_what_differs(tmp_path, one, other, names):
    written(tmp_path / "one", one, score=0.352)
    written(tmp_path / "other", other, score=0.866, seed=1)
    runs = read_folder(tmp_path)
    assert tuple(run.cell.variant for run in runs) == names
    assert {run.cell.task for run in runs} == {"reviews"}
    found = groups(Row(run.cell, run.results) for run in runs)
    assert len(found) == len(set(names))


def test_versions_machines_and_threads_are_no_settings(tmp_path):
    for seed in (0, 1):
        written(tmp_path / f"run{seed}", {}, seed=seed, environment={"torch": f"2.{seed}", "threads": seed})
    assert len(groups(Row(run.cell, run.results) for run in read_folder(tmp_path))) == 1


@pytest.fixture
def two(tmp_path):
    """Two experiments of one seed, the second one twice and with another seed, and their dense runs."""
    tuned = str(tmp_path / "runs" / "dense" / "model")
    second = {"training": {"steps": 220, "learning_rate": 3e-4}}
    written(tmp_path / "runs" / "dense", {"training": {"steps": 300}}, method="dense", score=0.889)
    written(tmp_path / "runs" / "first", {"training": {"steps": 150}}, score=0.352)
    written(tmp_path / "runs" / "second", second, score=0.866, model=tuned)
    written(tmp_path / "runs" / "second-again", second, score=0.8, model=tuned)
    written(tmp_path / "runs" / "second-more", second, score=0.862, model=tuned, seed=1)
    return tmp_path / "runs"


def test_different_experiments_are_no_seeds_of_one(two):
    page = Page(write_report(two))
    best = page.table("The best at each density")
    assert [(line[2].text, line[3].text, line[-1].text) for line in best] == [
        ("dense, 300 steps", "88.9 accuracy", "1"),
        ("movement, from dense, 220 steps", "86.4 accuracy", "2"),
    ]
    lines = [[cell.text for cell in line] for line in page.table("reviews, without a teacher")]
    assert [(line[1], line[2], line[-1]) for line in lines] == [
        ("dense, 300 steps", "88.9", "1"),
        ("movement, 150 steps", "35.2", "1"),
        ("movement, from dense, 220 steps", "86.4 ± 0.3", "2"),
    ]
    repeated = "second-again repeats second, seed included, with 80.00 % instead of 86.60 %: counted once."
    assert repeated in page.text
    assert len(page.table("Each run")) == 5
    figure = score_by_density(read_folder(two))
    means = [row[figure.header.index("mean")] for row in figure.data]
    assert means == pytest.approx([88.9, 35.2, 86.4])
    legend = [text.get_text() for text in figure.draw().legends[0].get_texts()]
    assert legend == ["movement, 150 steps", "movement, from dense, 220 steps"]


def test_a_page_compares_a_run_of_two_stages_with_its_own_first(two):
    folder = written(two / "staged", {"dense": {"steps": 300}}, score=0.7)
    written(folder / "dense", {"training": {"steps": 300}}, method="dense", score=0.8)
    page = Page(write_report(folder))
    assert "87.5 %" in said(page, "lost")
    assert "began with that dense model, after its 300 steps" in page.text


def test_a_page_says_in_what_the_dense_run_differs(two):
    text = Page(write_report(two / "second")).text
    assert "began with that dense model, after its 300 steps" in text
    rate = "learning_rate 3e-05 (here 0.0003)"
    assert f"The training of the dense run differs: 300 steps (here 220 steps); {rate}" in text
    written(two / "dense-alike", {"training": {"steps": 150}}, method="dense", score=0.7, seed=5)
    page = Page(write_report(two / "first"))
    assert "dense, seed 5: 70.0 %" in said(page, "lost")  # the length counts more than the seed
    assert "differs" not in page.text


@pytest.mark.parametrize("training", [{"seed": 0, "keep_best": "no", "steps": []}, ["seed"], ["ab"], 7])
def test_a_recipe_with_an_odd_training_has_a_page_and_no_dense_run(two, training):
    place = two / "second"
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"training": training}))
    (place / "results.json").unlink()
    assert "not finished" in Page(write_report(place)).text
    assert "not finished" in Page(write_report(two)).text


def test_a_share_of_dense_is_that_of_the_dense_run_that_is_most_alike(two):
    written(two / "dense-150", {"training": {"steps": 150}}, method="dense", score=0.704)
    found = groups(Row(run.cell, run.results) for run in read_folder(two))
    shares = {group.label: share(group, found) for group in found}
    assert shares["movement, 150 steps"] == pytest.approx(0.5)
    assert shares["movement, from dense, 220 steps"] == pytest.approx(0.864 / 0.889)


@pytest.mark.parametrize(("score", "dense"), [(-0.053, 0.147), (0.1, -0.2), (0.1, 0.0), (0.0, 0.5)])
def test_there_is_no_share_of_scores_that_are_not_positive(tmp_path, score, dense):
    more = {"metric": "pearson"}
    written(tmp_path / "dense", {}, method="dense", score=dense, scores={"pearson": dense}, **more)
    run = written(tmp_path / "run", {}, score=score, scores={"pearson": score}, **more)
    page = Page(write_report(tmp_path))
    assert page.table("reviews, without a teacher")[1][3].text == "–"
    lost = f"{100 * (score - dense):+.1f}".replace("-", "−")
    assert page.table("The best at each density")[1][4].text == lost
    assert "of the dense score" not in said(Page(write_report(run)), "lost")


def test_what_learned_nothing_is_marked_and_the_best_of_nothing(tmp_path):
    constant = {"constant": True, "majority": 0.9, "warnings": ["it learned <nothing>"]}
    more = {"scored_in": "float32", "teacher_score": 0.95}
    written(tmp_path / "good", {}, score=0.8, **more)
    bad = written(tmp_path / "bad", {}, method="magnitude", score=0.9, **constant)
    runs = read_folder(tmp_path)
    (table,) = tables([Row(run.cell, run.results) for run in runs])
    assert [line[1] for line in table.lines] == ["magnitude (learned nothing)", "movement"]
    assert table.best == {(1, 2)}
    page = Page(write_report(tmp_path))
    assert [line[2].text for line in page.table("The best at each density")] == ["movement"]
    assert "Learned nothing, as all validation examples get one answer: bad." in page.text
    assert "Warnings were given in 1 run, whose pages have them: bad." in page.text
    assert [line[1].text for line in page.table("Each run")] == ["finished, learned nothing", "finished"]
    page = Page(write_report(bad))
    assert "the same answer, which alone is right for 90.0 % of them" in page.text
    assert "it learned <nothing>" in [line.text for line in page.all("li")]
    text = Page(write_report(tmp_path / "good")).text
    assert "The teacher's score: 95.0 %. Scored in float32." in text
    written(tmp_path / "bad1", {}, method="magnitude", score=0.7, seed=1)
    (table,) = tables([Row(run.cell, run.results) for run in read_folder(tmp_path)])
    assert table.lines[0][1] == "magnitude (1 of 2 seeds learned nothing)"


def test_the_smallest_file_is_named(tmp_path):
    packed = {"float32": 49_200_000, "int8": 30_000_000, "int8, embeddings int8": 13_600_000}
    run = written(tmp_path / "run", {}, packed_bytes=packed, dense_bytes=68_000_000)
    told = said(Page(write_report(run)), "packed_bytes")
    assert "smallest: 13.6 MB, 20.0 % (int8, embeddings int8)" in told


def test_a_studys_tables_say_where_the_dense_run_differs(tmp_path, write_results):
    write_results("a-dense-s0", "dense", None, {"f1": 0.9}, steps=300)
    write_results("a-l0-0.1-s0", "l0", 0.1, {"f1": 0.45}, steps=150)
    rows = collect(tmp_path / "out", [Cell("a", "l0", 0.1, None, False, seed) for seed in (0, 1)])
    (table,) = tables(rows)
    assert [(line[1], line[-1]) for line in table.lines] == [
        ("dense, 300 steps", "1"),
        ("l0, 150 steps", "1 of 2"),
    ]
    header, *lines = as_csv(rows).splitlines()
    assert header.endswith(",paper,settings,constant")
    assert lines[1].endswith(",,150 steps,0")


def test_pages_that_are_older_than_their_dense_run_are_made_again(tmp_path):
    cells = [
        Cell("a", "dense", None, None, False, 0),
        Cell("a", "l0", 0.1, None, False, 0),
        Cell("b", "l0", 0.1, None, False, 0),
    ]
    runs = [Run(cell, None, None) for cell in cells]
    for cell in cells:
        folder = make_run(tmp_path / cell.name, cell.method)
        (folder / "report.html").touch()
    assert _without_newest_page(runs, tmp_path) == []
    dense = tmp_path / "a-dense-s0" / "results.json"
    later = (tmp_path / "a-l0-0.1-s0" / "report.html").stat().st_mtime + 5
    os.utime(dense, (later, later))
    assert _without_newest_page(runs, tmp_path) == ["a-l0-0.1-s0"]


def test_the_length_of_several_densities_is_that_of_the_last():
    recipe = {"model": {"name": "m"}, "training": {"seed": 0, "steps": 900}, "earlier_densities": [0.5, 0.25]}
    found = settings_of(recipe | {"pruning": {"method": "movement", "density": 0.1}}, {}, "runs")
    assert (found["length"].text, found["densities"].text) == ("300 steps", "after 0.5, 0.25")
