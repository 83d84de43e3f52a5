"""`fineprune study` from the command line."""

import csv
import json

import pytest
import yaml
from support import call

from fineprune._files import exclusive
from fineprune.study import report


@pytest.fixture
def here(recipe_file, tmp_path, monkeypatch):
    """A working directory with the study mine.yaml: one run that works, and one that cannot."""
    monkeypatch.chdir(tmp_path)
    recipes = {"a": "recipe.yaml", "b": ["recipe.yaml", "model.name=nowhere/none"]}
    axes = {"method": "movement", "density": 0.25}
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"name": "mine", "recipes": recipes, "axes": axes, "claims": True})
    )
    return tmp_path


def test_the_help_names_the_studies_of_the_package(capsys):
    assert call("study", "--help") == 0
    assert "short-runs" in capsys.readouterr().out


def test_a_study_from_plan_to_table(here, capsys, monkeypatch):
    assert call("study", "mine.yaml", "--dry-run") == 0
    assert capsys.readouterr().out == (
        "a-movement-0.25-s0  to do      12 steps\n"
        "b-movement-0.25-s0  to do      12 steps\n"
        "2 runs; folder: runs/mine\n"
    )
    assert not (here / "runs").exists()

    assert call("study", "mine.yaml") == 1
    printed = capsys.readouterr()
    assert "1/2 a-movement-0.25-s0: accuracy" in printed.out
    assert "a, without a teacher" in printed.out
    assert "distillation lifts all: **not tested at this scale**" in printed.out
    lines = printed.err.splitlines()
    assert any(line.startswith("failed: b-movement-0.25-s0: ") for line in lines)
    assert lines[-1].startswith("fineprune: 1 of 2 runs failed; see runs/mine/failures.jsonl")
    out = here / "runs" / "mine"
    score = json.loads((out / "a-movement-0.25-s0" / "results.json").read_text())["score"]
    assert [row["run"] for row in json.loads((out / "rows.json").read_text())] == ["a-movement-0.25-s0"]
    rows = list(csv.DictReader((out / "tables.csv").read_text().splitlines()))
    assert [(row["task"], row["seeds"]) for row in rows] == [("a", "1"), ("b", "0")]
    assert float(rows[0]["mean"]) == 100 * score
    assert f"| 25 % | movement | {100 * score:.1f} | – | 25.0% | 1 |" in (out / "tables.md").read_text()
    assert printed.out.splitlines()[-1] == "page: runs/mine/report.html"
    assert "no page" not in printed.err
    assert (out / "study.yaml").read_text() == (here / "mine.yaml").read_text()
    again = "fineprune study runs/mine/study.yaml --out runs/mine"
    assert again in (out / "report.html").read_text()
    for folder in (out, out / "a-movement-0.25-s0"):
        assert "a-movement-0.25-s0" in (folder / "report.html").read_text()

    assert call("study", "mine.yaml", "--dry-run", "--out", out) == 0
    assert capsys.readouterr().out.startswith("a-movement-0.25-s0  finished   12 steps\n")

    (here / "recipe.yaml").unlink()  # tables need neither recipes nor data
    (out / "tables.md").unlink()
    (out / "report.html").unlink()
    capsys.readouterr()
    assert call("study", "mine.yaml", "--table") == 0
    assert "0 of 1" in (out / "tables.md").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == "page: runs/mine/report.html"
    assert (out / "report.html").is_file()

    def fail(folder):
        raise RuntimeError("no ink")

    monkeypatch.setattr(report, "write_report", fail)
    assert call("study", "mine.yaml", "--table") == 0
    told = capsys.readouterr()
    assert told.err == "fineprune: no page: RuntimeError: no ink\n"
    assert "tables: runs/mine/tables.md" in told.out


def test_a_folder_that_cannot_be_written_costs_no_table(here, capsys):
    out = here / "runs" / "mine"
    (out / "rows.json").mkdir(parents=True)  # as good as a read-only folder, which root may write
    assert call("study", "mine.yaml", "--table") == 0
    told = capsys.readouterr()
    assert "a, without a teacher" in told.out
    assert "rows.json: cannot be written (Is a directory" in told.err
    assert "the tables are not kept" in told.err


def test_a_page_that_is_missing_is_made_and_what_is_gone_or_damaged_is_said(here, capsys):
    values = yaml.safe_load((here / "mine.yaml").read_text())
    del values["recipes"]["b"]
    (here / "mine.yaml").write_text(yaml.safe_dump(values))
    assert call("study", "mine.yaml") == 0
    run = here / "runs" / "mine" / "a-movement-0.25-s0"
    (run / "report.html").unlink()  # as after a kill between the results and the page
    assert call("study", "mine.yaml") == 0
    assert (run / "report.html").is_file()

    (run / "model").rename(run / "moved")
    capsys.readouterr()
    assert call("study", "mine.yaml", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("a-movement-0.25-s0  no model   12 steps\n1 runs, 1 no model;")
    assert call("study", "mine.yaml") == 0
    told = capsys.readouterr().out
    assert "1 of 1 runs are finished\na-movement-0.25-s0: the run is finished, but its model is gone" in told

    (run / "results.json").write_text("{")
    assert call("study", "mine.yaml", "--dry-run") == 0
    assert "1 runs, 1 damaged;" in capsys.readouterr().out
    assert call("study", "mine.yaml") == 2
    told = capsys.readouterr()
    assert "results.json: cannot be read, it is damaged" in told.err
    assert "a study needs no --resume: delete it and start the study again" in told.err
    assert told.out == ""
    assert call("study", "mine.yaml", "--table") == 0
    assert "a, without a teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study", "small-tabel2"], "no study of that name; did you mean small-table2"),
        (["study", "mine.yaml", "--table"], "runs/mine: no such folder; run the study first"),
        (["study", "mine.yaml", "--table", "--dry-run"], "not both"),
        (["study", "none.yaml"], "none.yaml: the study cannot be read"),
    ],
)
def test_what_cannot_work_is_one_line(here, capsys, arguments, said):
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_papers_plan(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("study", "paper-table2", "--dry-run") == 0
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if not line.startswith("#")]
    assert printed[len(lines)].startswith("# The paper's Table 2 in full")  # the file's own words, behind
    assert len(lines) == 28
    assert lines[0].split() == ["squad-dense-s0", "to", "do", "3", "epochs,", "about", "16,500", "steps"]
    assert lines[-1] == "27 runs; folder: runs/paper"
    assert not any(tmp_path.iterdir())


def test_a_refused_study_leaves_the_file_of_the_running_one(here, capsys):
    out = here / "runs" / "mine"
    (out / ".study").mkdir(parents=True)
    (out / "study.yaml").write_text(running := (here / "mine.yaml").read_text())
    (here / "mine.yaml").write_text(running.replace("0.25", "0.5"))
    with exclusive(out / ".study" / "lock", ""):
        assert call("study", "mine.yaml") == 2
    assert "a study is running there" in capsys.readouterr().err
    assert (out / "study.yaml").read_text() == running


def test_a_folder_holds_one_study(here, capsys):
    other = here / "runs" / "other"
    other.mkdir(parents=True)
    (other / "study.yaml").write_text("name: other\n")
    for options in ([], ["--table"]):
        assert call("study", "mine.yaml", "--out", other, *options) == 2
        assert "holds the study other, and this one is called mine; name another" in capsys.readouterr().err
    assert (other / "study.yaml").read_text() == "name: other\n"
