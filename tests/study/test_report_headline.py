"""What the top of the page compares: runs of one task and model, seeds as what they are."""

import json

import pytest
import yaml
from study.reports import Page, make_bench, make_run, said

from fineprune.study.grouping import Row
from fineprune.study.report import write_report
from fineprune.study.study_folder import read_folder
from fineprune.study.tables import tables


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """Pages without figures, which take seconds."""
    monkeypatch.setattr("fineprune.study.figures.drawings", lambda runs: [])


def test_the_speed_of_a_setting_is_the_mean_of_what_was_timed_alike(tmp_path):
    for seed, ratios in enumerate(({"engine int8": 8.0}, {"engine int8": 9.0}, {"engine float32": 30.0})):
        make_bench(make_run(tmp_path / f"a-l0-0.1-s{seed}", "l0", seed=seed), {"torch": 1.0, **ratios})
    page = Page(write_report(tmp_path))
    ((*_, speed, _),) = page.table("The best at each density")
    assert (speed.text, json.loads(speed.attributes["data-value"])) == ("8.5× int8 (2)", 8.5)
    assert "the score is that of float32" in page.text


def test_one_seed_each_is_said(tmp_path):
    for method in ("l0", "movement"):
        make_run(tmp_path / f"a-{method}-0.1-s0", method)
    study = {"name": "b", "recipes": {"a": "r"}, "axes": {"method": "l0"}}
    for claims, count in ((True, 2), (False, 1)):  # headline, and claims only where the paper is repeated
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"claims": claims}))
        page = Page(write_report(tmp_path))
        assert page.text.count("One seed each: small differences may be noise.") == count
        assert ("not tested at this scale" in page.text) == claims
    (tmp_path / "study.yaml").unlink()
    page = Page(write_report(tmp_path))
    assert not page.all("section", id="claims")
    assert "fineprune study" not in page.text


def test_runs_of_several_tasks_in_one_folder_are_not_seeds_of_one(tmp_path):
    for task, score in (("sst2", 0.9), ("mrpc", 0.7)):
        data = {"kind": "classification", "train": f"../data/{task}/train.tsv"}
        make_run(tmp_path / "runs" / f"{task} dense", "dense", score=score, task=data)
        make_run(tmp_path / "runs" / f"small {task}", score=score - 0.1, task=data)
    runs = read_folder(tmp_path / "runs")
    made = tables([Row(run.cell, run.results) for run in runs])
    assert [table.title for table in made] == [
        "mrpc, without a teacher",
        "sst2, without a teacher",
    ]
    assert [[line[-1] for line in table.lines] for table in made] == [["1", "1"]] * 2
    page = Page(write_report(tmp_path / "runs"))
    best = page.table("The best at each density")
    assert [(line[0].text, line[3].text, line[-1].text) for line in best] == [
        *(("mrpc", "70.0 accuracy", "1"), ("mrpc", "60.0 accuracy", "1")),
        *(("sst2", "90.0 accuracy", "1"), ("sst2", "80.0 accuracy", "1")),
    ]


def test_the_dense_run_is_of_the_same_model(tmp_path):
    make_run(tmp_path / "other", "dense", score=0.95, model="large")
    run = make_run(tmp_path / "pruned", seed=1)
    assert "no dense run to compare with" in said(Page(write_report(run)), "lost")
    make_run(tmp_path / "dense", "dense", score=0.9)
    assert "dense, seed 0: 90.0 %" in said(Page(write_report(run)), "lost")
    tuned = make_run(tmp_path / "tuned", model=str(tmp_path / "other" / "model"))
    assert "dense: 95.0 %" in said(Page(write_report(tuned)), "lost")


def test_the_command_of_the_dense_run_leaves_no_section_that_needs_pruning(tmp_path):
    make_run(tmp_path / "a-l0-0.1-s0", "l0")
    page = Page(write_report(tmp_path))
    assert (
        "/RUN/recipe.yaml pruning=null refine=null earlier_densities=null distillation=null --out"
        in page.text
    )
