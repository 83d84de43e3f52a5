"""The heads and neurons that are left, on the page of a run whose model was made smaller."""

import pytest
from study.reports import Page, make_run

from fineprune.study.report import write_report
from fineprune.study.report.units import UnitLayer, units_of

LAYERS = [
    {
        **{"stack": "encoder.layer", "layer": layer},
        **{"heads": 4, "heads_left": len(living), "living_heads": living},
        **{"neurons": 1000, "neurons_left": neurons},
    }
    for layer, (living, neurons) in enumerate((([0, 3], 250), ([1], 1000)))
]
SHRUNK = {"layers": LAYERS, "flops": [2_000_000_000, 500_000_000]}


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """Pages without figures, which take seconds."""
    monkeypatch.setattr("fineprune.study.figures.drawings", lambda runs: [])


def test_each_layer_has_a_cell_for_each_head_and_a_share_of_neurons():
    found = units_of({"shrunk": SHRUNK})
    assert found.layers == [
        UnitLayer("0", [True, False, False, True], "2 of 4", 0.25, "250 of 1,000"),
        UnitLayer("1", [False, True, False, False], "1 of 4", 1.0, "1,000 of 1,000"),
    ]
    assert found.sentence == (
        "3 of 8 heads and 1,250 of 2,000 neurons are left. A text of 128 tokens takes 0.5 GFLOPs, "
        "25.0\N{NO-BREAK SPACE}% of the original model's 2."
    )


def test_stacks_are_named_where_there_are_several_and_halves_may_be_missing():
    other = LAYERS[0] | {"stack": "decoder.layer", "heads": 0, "heads_left": 0, "living_heads": []}
    found = units_of({"shrunk": SHRUNK | {"layers": [LAYERS[0], other]}})
    assert [(layer.label, layer.heads_text) for layer in found.layers] == [
        ("encoder.layer 0", "2 of 4"),
        ("decoder.layer 0", ""),
    ]


@pytest.mark.parametrize("results", [None, {}, {"shrunk": None}, {"shrunk": {"heads": [[1, 2]]}}])
def test_other_runs_have_no_picture(results):
    assert units_of(results) is None


def test_the_page_shows_them(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", results={"shrunk": SHRUNK})))
    (section,) = page.all("section", id="units")
    assert "3 of 8 heads" in section.text
    assert [len(page.all("i", **{"class": "left"})), len(page.all("i"))] == [3, 8 + 2]
    broken = make_run(tmp_path / "broken", results={"shrunk": SHRUNK | {"flops": None}})
    page = Page(write_report(broken))
    assert "heads and neurons: cannot be made" in page.text
    assert page.all("section", id="units") == []
