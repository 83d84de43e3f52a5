"""Rows are read from run folders, and are not mixed where they are of different recipes."""

import json
import re

import pytest

from fineprune import FinepruneError
from fineprune.study.grid import Cell
from fineprune.study.grouping import groups, share
from fineprune.study.rows import as_dicts, by_layer, collect


def test_rows_are_of_the_folders_and_of_what_is_planned(tmp_path, write_results, caplog):
    write_results("a-movement-0.1-s1", "movement", 0.1, {"accuracy": 0.75})
    write_results("a-dense-s0", "dense", None, {"accuracy": 0.9})
    (tmp_path / "out" / "a-movement-0.1-s2").mkdir()  # begun
    planned = [Cell("a", "movement", 0.1, None, False, seed) for seed in (0, 1)]
    rows = collect(tmp_path / "out", planned)
    assert [(row.cell.name, row.results and row.results["score"]) for row in rows] == [
        ("a-dense-s0", 0.9),
        ("a-movement-0.1-s0", None),
        ("a-movement-0.1-s1", 0.75),
    ]
    dense, pruned = groups(rows)
    assert share(pruned, [dense, pruned]) == pytest.approx(0.75 / 0.9)
    assert share(pruned, [pruned]) is None
    plain = as_dicts(rows)
    assert [row["run"] for row in plain] == ["a-dense-s0", "a-movement-0.1-s1"]
    assert plain[1]["measured"]["scores"] == {"accuracy": 0.75, "loss": 0.5}
    assert (plain[1]["method"], plain[1]["seed"]) == ("movement", 1)


def test_each_density_of_a_run_is_a_row(tmp_path, write_results):
    write_results("a-movement-0.1-s0", "movement", 0.1, {"accuracy": 0.7})
    write_results("a-movement-0.1-s0/density-0.5", "movement", 0.5, {"accuracy": 0.8})
    (tmp_path / "out" / "a-movement-0.1-s0" / "density-0.25").mkdir()  # begun
    rows = collect(tmp_path / "out")
    assert [(row.cell.name, row.results["score"]) for row in rows] == [
        ("a-movement-0.5-s0", 0.8),
        ("a-movement-0.1-s0", 0.7),
    ]


@pytest.mark.parametrize("damage", [{"pruning": {}}, {"pruning": None}, {"training": {}}])
def test_a_damaged_density_of_a_run_costs_no_other_row(tmp_path, write_results, caplog, damage):
    write_results("a-movement-0.1-s0", "movement", 0.1, {"accuracy": 0.7})
    path = write_results("a-movement-0.1-s0/density-0.5", "movement", 0.5, {"accuracy": 0.8}) / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"recipe": results["recipe"] | damage}))
    (row,) = collect(tmp_path / "out")
    assert row.cell.name == "a-movement-0.1-s0"
    assert "density-0.5: left out, " in caplog.text


def test_mean_and_deviation(tmp_path, write_results):
    for seed, score in enumerate((0.70, 0.72, 0.77)):
        write_results(f"a-l0-0.1-s{seed}", "l0", 0.1, {"f1": score}, kept=0.1 + 0.001 * seed)
    (group,) = groups(collect(tmp_path / "out"))
    assert group.mean("f1") == pytest.approx(73.0)
    assert group.deviation("f1") == pytest.approx(13**0.5)  # squares 9 + 1 + 16, by 2
    assert group.kept == pytest.approx(0.101)
    assert group.mean("accuracy") is None


def test_a_folder_with_another_name_is_left_out(tmp_path, write_results, caplog):
    write_results("a-movement-0.1-s0", "movement", 0.2, {"accuracy": 0.75})
    assert collect(tmp_path / "out") == []
    assert "left out, its name does not say what its recipe is" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"recipe": {"pruning": null}}'])
def test_what_cannot_be_read_is_left_out_and_costs_no_other_run(tmp_path, write_results, caplog, text):
    write_results("a-movement-0.1-s0", "movement", 0.1, {"accuracy": 0.75})
    folder = tmp_path / "out" / "a-dense-s0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(text)
    (row,) = collect(tmp_path / "out")
    assert row.cell.name == "a-movement-0.1-s0"
    (said,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert re.search(r"s0: left out, .*results.json: (cannot be read|not the results of a run)", said)


def test_a_recipe_that_is_of_no_run_is_left_out(tmp_path, write_results, caplog):
    path = write_results("a-movement-0.1-s0", "movement", 0.1, {"accuracy": 0.75}) / "results.json"
    results = json.loads(path.read_text())
    del results["recipe"]["pruning"]["method"]
    path.write_text(json.dumps(results))
    assert collect(tmp_path / "out") == []
    assert "its recipe is of no run ('method'); delete it" in caplog.text


def test_seeds_of_different_recipes_are_not_averaged(tmp_path, write_results):
    write_results("a-l0-0.1-distilled-s0", "l0", 0.1, {"f1": 0.7})
    write_results("a-l0-0.1-distilled-s1", "l0", 0.1, {"f1": 0.8})
    assert len(collect(tmp_path / "out")) == 2  # each has a teacher of its own
    write_results("a-l0-0.1-distilled-s2", "l0", 0.1, {"f1": 0.9}, steps=8)
    with pytest.raises(
        FinepruneError, match=r"distilled-s0 and .*distilled-s2: seeds .* differ in training;"
    ):
        collect(tmp_path / "out")


@pytest.mark.parametrize(
    ("section", "chosen", "alike"),
    [
        ("pruning", {"score_optimizer": "adam"}, True),
        ("pruning", {"score_optimizer": "sgd"}, False),
        ("training", {"schedule": "linear"}, True),
        ("training", {"schedule": "hold"}, False),
        ("dense", {"steps": 3}, False),
    ],
)
def test_a_setting_that_is_younger_than_a_run_had_its_default_there(
    tmp_path, write_results, section, chosen, alike
):
    write_results("a-movement-0.1-s0", "movement", 0.1, {"f1": 0.7})
    path = write_results("a-movement-0.1-s1", "movement", 0.1, {"f1": 0.8}) / "results.json"
    results = json.loads(path.read_text())
    results["recipe"][section] = results["recipe"].get(section, {}) | chosen
    path.write_text(json.dumps(results))
    if alike:
        assert len(collect(tmp_path / "out")) == 2
    else:
        with pytest.raises(FinepruneError, match=rf"s0 and .*s1: seeds .* differ in {section};"):
            collect(tmp_path / "out")


def test_variants_of_a_study_are_rows_named_by_what_differs(tmp_path, write_results):
    for name, rate in (("usual", 3e-5), ("slow", 1e-6)):
        for seed in (0, 1):
            path = write_results(f"a-l0-0.1-s{seed}-{name}", "l0", 0.1, {"f1": 0.7}) / "results.json"
            results = json.loads(path.read_text())
            results["recipe"]["training"]["learning_rate"] = rate
            path.write_text(json.dumps(results))
    found = groups(collect(tmp_path / "out"))
    assert [(group.cell.variant, len(group.rows)) for group in found] == [
        ("learning_rate 1e-06", 2),
        ("learning_rate 3e-05", 2),
    ]
    planned = [Cell("a", "l0", 0.1, None, False, 2, variant) for variant in ("slow", "fast")]
    rows = collect(tmp_path / "out", planned)
    assert {row.cell.variant for row in rows if row.results is None} == {"learning_rate 1e-06", "fast"}


def test_thin_models_are_rows_of_their_own(tmp_path, write_results):
    for name, rank in (("whole", None), ("thin", 3)):
        path = write_results(f"a-l0-0.1-s0-{name}", "l0", 0.1, {"f1": 0.7}) / "results.json"
        results = json.loads(path.read_text())
        results["recipe"]["model"] = {"name": "m", "low_rank": rank}
        path.write_text(json.dumps(results))
    found = {group.cell.variant for group in groups(collect(tmp_path / "out"))}
    assert len(found) == 2
    assert "of low rank, 3" in found


def test_seeds_may_start_from_dense_runs_of_their_own(tmp_path, write_results):
    for seed, start in ((0, "a-dense-s0"), (1, "a-dense-s1"), (2, "elsewhere")):
        path = write_results(f"a-l0-0.1-s{seed}", "l0", 0.1, {"f1": 0.7}) / "results.json"
        results = json.loads(path.read_text())
        results["recipe"]["model"] = {"name": f"runs/{start}", "layers": None}
        if seed == 1:  # it was run after these came
            results["recipe"]["model"] |= {"attention": None, "low_rank": None, "trust_remote_code": False}
        path.write_text(json.dumps(results))
        if seed < 2:
            assert len(collect(tmp_path / "out")) == seed + 1
    with pytest.raises(FinepruneError, match="differ in model"):
        collect(tmp_path / "out")


def test_json_can_hold_it(tmp_path, write_results):
    write_results("a-dense-s0", "dense", None, {"accuracy": 0.9})
    assert json.loads(json.dumps(as_dicts(collect(tmp_path / "out"))))[0]["density"] is None


def test_the_density_of_each_layer(tiny_record, write_results, caplog):
    # Two rows of four are kept of each matrix; those of one layer count together, other stacks do not.
    names = ("encoder.1.a.query", "encoder.0.a.query", "encoder.0.a.key", "decoder.0.a.query", "pooler")
    assert by_layer(tiny_record(names)) == (0.5, 0.5)
    assert by_layer(tiny_record(("pooler",))) == by_layer(None) == ()
    folder = write_results("a-l0-0.1-s0", "l0", 0.1, {"accuracy": 0.5})
    (folder / "weights.npz").write_bytes(b"PK broken")
    assert collect(folder.parent)[0].layers == ()
    assert "weights.npz: cannot be read" in caplog.text
