"""Tables, worked out by hand from results that are written here."""

import json

import pytest

from fineprune.study.grid import Cell
from fineprune.study.rows import collect
from fineprune.study.tables import Table, as_csv, as_markdown, as_text, tables


@pytest.fixture
def rows(tmp_path, write_results):
    """MNLI: dense, two methods at 10 % over two seeds, one of which is not finished; one distilled."""
    write_results("mnli-dense-s0", "dense", None, {"accuracy": 0.8, "mismatched_accuracy": 0.81})
    write_results("mnli-magnitude-0.1-s0", "magnitude", 0.1, {"accuracy": 0.6, "mismatched_accuracy": 0.66})
    write_results("mnli-magnitude-0.1-s1", "magnitude", 0.1, {"accuracy": 0.62, "mismatched_accuracy": 0.64})
    write_results("mnli-movement-0.1-s0", "movement", 0.1, {"accuracy": 0.7, "mismatched_accuracy": 0.65})
    write_results(
        "mnli-l0-0.03-distilled-s0", "l0", 0.03, {"accuracy": 0.5, "mismatched_accuracy": 0.4}, kept=0.031
    )
    planned = [Cell("mnli", "movement", 0.1, None, False, seed) for seed in (0, 1)]
    planned.append(Cell("mnli", "soft_movement", 0.1, None, False, 0))
    return collect(tmp_path / "out", planned)


# magnitude: mean 61, deviation √2 = 1.4; of dense 61 / 80 = 76.25 %; mismatched mean 65, that of movement.
MARKDOWN = """\
### mnli, without a teacher

| density | method | accuracy, % | mismatched_accuracy, % | of dense | kept | seeds | paper: accuracy / mismatched_accuracy |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| 100 % | dense | 80.0 | 81.0 | 100.0% | 100.0% | 1 | 84.5 / 84.9 |
| 10 % | magnitude | 61.0 ± 1.4 | **65.0 ± 1.4** | 76.2% | 10.0% | 2 | 77.8 / 79.0 |
| 10 % | movement | **70.0** | **65.0** | 87.5% | 10.0% | 1 of 2 | 79.3 / 79.5 |
| 10 % | soft_movement | – | – | – | – | 0 of 1 | 80.7 / 81.2 |

### mnli, with a teacher

| density | method | accuracy, % | mismatched_accuracy, % | of dense | kept | seeds | paper: accuracy / mismatched_accuracy |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| 100 % | dense | 80.0 | 81.0 | 100.0% | 100.0% | 1 | 84.5 / 84.9 |
| 3 % | l0 | 50.0 | 40.0 | 62.5% | 3.1% | 1 | 76.2 / 76.5 |
"""  # noqa: E501


def test_a_share_is_of_the_dense_runs_of_the_same_seeds(tmp_path, write_results):
    for seed, dense, magnitude in ((0, 0.8, None), (1, 0.6, 0.54), (2, 0.5, 0.45)):
        write_results(f"mnli-dense-s{seed}", "dense", None, {"accuracy": dense})
        if magnitude is not None:
            write_results(f"mnli-magnitude-0.1-s{seed}", "magnitude", 0.1, {"accuracy": magnitude})
    write_results("mnli-movement-0.1-s1", "movement", 0.1, {"accuracy": 0.57})
    write_results("mnli-movement-0.1-s7", "movement", 0.1, {"accuracy": 0.57})
    (table,) = tables(collect(tmp_path / "out", []))
    shares = {line[1]: line[3] for line in table.lines}
    # 49.5 of 55, the mean of seeds 1 and 2; seed 7 has no dense run, so 57 of all, 63.3.
    assert shares == {"dense": "100.0%", "magnitude": "90.0%", "movement": "90.0%"}


def test_markdown(rows):
    assert as_markdown(tables(rows)) == MARKDOWN


def test_text(rows):
    text = as_text(tables(rows), width=160)
    assert "mnli, with a teacher" in text
    (line,) = [line for line in text.splitlines() if "magnitude" in line]
    assert [part.strip() for part in line.strip("│").split("│")] == [
        "10 %",
        "magnitude",
        "61.0 ± 1.4",
        "65.0 ± 1.4*",
        "76.2%",
        "10.0%",
        "2",
        "77.8 / 79.0",
    ]
    assert "\x1b[1m70.0*" in as_text(tables(rows), width=160, color=True)


def test_a_narrow_terminal_loses_no_word(rows):
    text = as_text(tables(rows), width=80)
    assert "…" not in text
    assert "61.0 ± 1.4" in text


def test_csv(rows):
    lines = as_csv(rows).splitlines()
    assert lines[0] == (
        "task,method,density,scope,distillation,seeds,planned,metric,mean,deviation,of_dense,kept,paper"
    )
    assert lines[1] == "mnli,dense,,,false,1,1,accuracy,80.0,,1.0,1.0,84.5"
    assert lines[5] == "mnli,movement,0.1,,false,1,2,accuracy,70.0,,0.875,0.1,79.3"
    assert lines[6] == "mnli,movement,0.1,,false,1,2,mismatched_accuracy,65.0,,,0.1,79.5"
    assert lines[7] == "mnli,soft_movement,0.1,,false,0,1,accuracy,,,,,80.7"
    assert lines[9] == "mnli,l0,0.03,,true,1,1,accuracy,50.0,,0.625,0.031,76.2"
    assert len(lines) == 11


def test_a_task_that_the_paper_has_not(tmp_path, write_results):
    write_results("mine-movement-0.1-s0", "movement", 0.1, {"spearman": 0.5, "pearson": 0.25})
    write_results("mine-movement-0.1-global-s0", "movement", 0.1, {"spearman": 0.75}, scope="global")
    (table,) = tables(collect(tmp_path / "out"))
    assert table.columns == ("density", "method", "spearman, %", "of dense", "kept", "seeds")
    assert table.lines == [
        ("10 %", "movement", "50.0", "–", "10.0%", "1"),
        ("10 %", "movement, global", "75.0", "–", "10.0%", "1"),
    ]
    assert table.best == {(1, 2)}


def test_nothing_is_finished(tmp_path):
    (tmp_path / "out").mkdir()
    planned = [Cell("mine", "l0", 0.1, None, False, 0), Cell("squad", "dense", None, None, False, 0)]
    mine, squad = tables(collect(tmp_path / "out", planned))
    assert mine.lines == [("10 %", "l0", "–", "–", "–", "0 of 1")]
    assert squad.columns[2:4] == ("exact_match, %", "f1, %")
    assert squad.lines == [("100 %", "dense", "–", "–", "–", "–", "0 of 1", "80.4 / 88.1")]
    assert tables([]) == []
    assert as_markdown([]) == as_text([]) == ""


def test_a_notebook_shows_them(rows):
    html = rows._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 2
    assert "<caption>mnli, with a teacher</caption>" in html
    assert "<tr><td>10 %</td><td>magnitude</td><td>61.0 ± 1.4</td><td><b>65.0 ± 1.4</b></td>" in html
    assert html == "\n".join(table._repr_html_() for table in tables(rows))
    assert collect("nowhere")._repr_html_() == "<p>no runs</p>"


def test_markup_in_labels_is_text(tmp_path):
    planned = [Cell("<i>&task", "l0", 0.1, None, False, 0)]
    (tmp_path / "out").mkdir()
    html = collect(tmp_path / "out", planned)._repr_html_()
    assert "<caption>&lt;i&gt;&amp;task, without a teacher</caption>" in html
    assert "<i>" not in html
    table = Table("t", ("<b>",), [("<script>",)], frozenset([(0, 0)]))
    assert table._repr_html_() == (
        "<table>\n<caption>t</caption>\n<thead><tr><th>&lt;b&gt;</th></tr></thead>\n"
        "<tbody>\n<tr><td><b>&lt;script&gt;</b></td></tr>\n</tbody>\n</table>"
    )


def test_what_structures_left_is_in_the_tables(write_results):
    folder = write_results("a-movement-0.5-s0", "movement", 0.5, {"accuracy": 0.8})
    results = json.loads((folder / "results.json").read_text())
    results["recipe"]["pruning"]["structure"] = {"attention": "head"}
    results["left"] = {"parameters": 0.5, "flops": 0.25, "heads": [3, 12]}
    shaped = folder.parent / "a-movement.heads-0.5-s0"
    shaped.mkdir()
    (shaped / "results.json").write_text(json.dumps(results))
    rows = collect(folder.parent)
    (table,) = tables(rows)
    assert table.columns[3:] == ("of dense", "kept", "heads", "neurons", "FLOPs left", "seeds")
    assert [(line[1], *line[5:8]) for line in table.lines] == [
        ("movement", "–", "–", "–"),
        ("movement, heads", "25.0%", "–", "25.0%"),
    ]
    head, plain, heads = as_csv(rows).splitlines()
    assert head.endswith(",structure,heads,neurons,flops")
    assert plain.endswith(",,,,")
    assert heads.endswith(",heads,0.25,,0.25")
