"""The command line end to end, on a tiny model and a file of twelve words."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import call, without_progress, write_recipe

import fineprune_runtime
from fineprune.training.run.recipe import Recipe

LONG = "x" * 300


@pytest.fixture(scope="module")
def place(save_body) -> Path:
    """A folder with `tiny`, a pre-trained model, data that can be learned, and a recipe."""
    model = Path(save_body(initializer_range=0.02))
    rows = [f"{'very ' * (i % 4)}{('bad', 'good')[i % 2]} film\t{('no', 'yes')[i % 2]}" for i in range(40)]
    write_recipe(model.parent, model, rows, density=0.25)
    return model.parent


@pytest.fixture(scope="module")
def finished(place) -> Path:
    assert call("run", place / "recipe.yaml", "--out", place / "run") == 0
    return place / "run"


def test_run_prints_density_and_leaves_a_model(place, capsys):
    assert call("run", place / "recipe.yaml", "training.seed=1", "--out", place / "printed") == 0
    # 2 blocks of 4 8x8 and 2 8x16 matrices: 1,024 weights, a quarter of each kept
    told = capsys.readouterr()
    assert without_progress(told.err) == ""
    assert "with 25.00% of 1,024 weights" in told.out
    assert told.out.splitlines()[-1] == f"page: {place / 'printed' / 'report.html'}"
    assert "<html" in (place / "printed" / "report.html").read_text()
    assert json.loads((place / "printed" / "results.json").read_text())["kept"] == 256
    assert (place / "printed" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [RuntimeError("no\nink"), KeyboardInterrupt()])
def test_a_page_that_fails_costs_no_run(place, error, capsys, monkeypatch, tmp_path):
    from fineprune.study import report

    def fail(folder):
        raise error

    monkeypatch.setattr(report, "write_report", fail)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert call("run", place / "recipe.yaml", "--out", tmp_path / "run") == (130 if interrupted else 0)
    told = capsys.readouterr()
    assert "with 25.00% of 1,024 weights" in told.out
    assert "page: " not in told.out
    stopped = "fineprune: stopped; a run goes on with --resume, a study by the same command\n"
    assert without_progress(told.err) == (
        stopped if interrupted else "fineprune: no page: RuntimeError: no ink\n"
    )
    assert call("evaluate", tmp_path / "run") == 0


def test_a_run_without_the_extra_study_has_no_page(place, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert call("run", place / "recipe.yaml", "--out", tmp_path / "run") == 0
    printed = capsys.readouterr()
    assert "with 25.00% of 1,024 weights" in printed.out
    assert (
        without_progress(printed.err)
        == "fineprune: no page: a page needs matplotlib: pip install 'fineprune[study]'\n"
    )
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_packed_run_reads_as_many_tokens_as_it_was_scored_on(finished, capsys, tmp_path):
    """What a text says behind the recipe's 16 tokens changes no answer, in any way to ask."""
    said = json.loads((finished / "model" / "config.json").read_text())
    assert said["fineprune_max_length"] == Recipe.load(finished / "recipe.yaml").training.max_length == 16
    assert call("compact", finished, tmp_path / "small") == 0
    text = "good film " * 8
    predictor = fineprune_runtime.load(tmp_path / "small")
    one, other = predictor.predict([text, text + "bad " * 20])
    assert one == other
    assert one != predictor.predict([text + "bad " * 20], max_length=32)[0]
    capsys.readouterr()
    for place in (finished, finished / "model", tmp_path / "small"):
        assert call("predict", place, text + "bad " * 20, "--json") == 0
        assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(one.score, abs=1e-5)


def test_run_twice_is_refused_and_resume_returns_at_once(place, finished, capsys):
    before = (finished / "results.json").read_bytes()
    assert call("run", place / "recipe.yaml", "--out", finished) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert error.count("\n") == 1
    assert call("run", place / "recipe.yaml", "--out", finished, "--resume") == 0
    assert (finished / "results.json").read_bytes() == before


def test_evaluate_agrees_with_the_run(place, finished, capsys):
    assert call("evaluate", finished, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] == json.loads((finished / "results.json").read_text())["score"]
    assert call("evaluate", finished, "--data", place / "train.tsv") == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_evaluate_shows_its_progress_on_a_terminal_alone(finished, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert call("evaluate", finished, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)
    assert ("100%" in told.err) is terminal
    assert terminal or told.err == ""


def test_predict_texts_files_and_pairs(place, finished, capsys):
    assert call("predict", finished, "good film", "bad film", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["good film", "bad film"]
    assert {row["label"] for row in rows} <= {"no", "yes"}
    (place / "pairs.txt").write_text("good\tfilm\nbad\tfilm\n", encoding="utf-8")
    assert call("predict", finished, "--file", place / "pairs.txt") == 2
    assert "trained on single texts; leave the second texts out, --pair" in capsys.readouterr().err
    shutil.copytree(finished / "model", place / "unknown")
    config = json.loads((place / "unknown" / "config.json").read_text())
    assert config.pop("fineprune_text_pairs") is False
    (place / "unknown" / "config.json").write_text(json.dumps(config))
    assert call("predict", place / "unknown", "--file", place / "pairs.txt") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("\tbad\tfilm")


def test_predict_prints_no_control_characters(finished, capsys):
    assert call("predict", finished, "good \x1b[31mred\x07\nfilm\x9b") == 0
    assert capsys.readouterr().out.endswith("\tgood \\x1b[31mred\\x07\\nfilm\\x9b\n")
    assert call("predict", finished, "good", "--file", "\x1b]0;a.txt") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_predict_reads_as_many_tokens_as_the_recipe_says(finished, capsys, tmp_path):
    capsys.readouterr()
    texts = ["very " * 14 + end for end in ("", "bad bad bad")]  # what differs is behind the 16th token
    assert call("predict", finished, *texts, "--json") == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (one["label"], one["score"]) == (two["label"], two["score"])
    older = tmp_path / "older"  # which does not say; as many as the model takes
    shutil.copytree(finished / "model", older)
    config = json.loads((older / "config.json").read_text())
    (older / "config.json").write_text(json.dumps(config | {"fineprune_max_length": None}))
    assert call("predict", older, *texts, "--json") == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert one["score"] != two["score"]


def test_predict_needs_a_head_and_a_tokenizer(save_body, tmp_path, capsys):
    body = save_body()
    capsys.readouterr()
    assert call("predict", body, "good") == 2
    assert capsys.readouterr().err == (
        f"fineprune: predict: {body} holds a BertModel, which has no head of a task; name a run\n"
    )
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(body) / name, tmp_path / name)
    assert call("predict", tmp_path, "good") == 2
    assert capsys.readouterr().err == (
        f"fineprune: {tmp_path}: no tokenizer in it; save the model's tokenizer there, too\n"
    )


def test_inspect(finished, capsys):
    capsys.readouterr()
    assert call("inspect", finished, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kept"], told["total"], len(told["layers"]), len(told["blocks"])) == (256, 1024, 12, 2)
    assert call("inspect", finished) == 0
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["layer", "density", "heads", "left", "FFN", "neurons", "left"]
    assert first.split()[:3] == ["0", "█" * 32, "25.00%"]
    assert second.split()[:3] == ["1", "█" * 32, "25.00%"]
    assert rest[-1] == told["line"]
    assert rest[-1].startswith("run: 256 of 1,024 weights kept (25.00%)")
    assert rest[-1].endswith("; latency: not measured")
    assert rest[-2].startswith("accuracy")
    results = json.loads((finished / "results.json").read_text())
    size = results["packed_bytes"]["int8, embeddings int8"]
    assert rest[-3].endswith(f"{size / 1e6:.1f} MB as int8, embeddings int8")
    assert told["warnings"] == results["warnings"]
    assert [line for line in rest if "warning" in line] == [
        f"warning of the run: {text}" for text in results["warnings"]
    ]


def test_inspect_lists_matrices_where_asked(finished, capsys):
    assert call("inspect", finished / "model") == 0
    brief = capsys.readouterr().out
    assert "query" not in brief
    assert call("inspect", finished / "model", "--matrices") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["matrix", "shape", "kept", "of", "density"]
    name = "bert.encoder.layer.0.attention.self.query"
    assert lines[1].split() == [name, "8", "x", "8", "16", "64", "25.00%"]
    assert "\n".join(lines).endswith(brief.strip())


def test_inspect_where_blocks_cannot_be_printed(finished, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii", write_through=True))
    assert call("inspect", finished) == 0
    assert f"    0  {'#' * 32}" in printed.getvalue().decode("ascii")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pruning.density=0"], "density=0"),
        (["pruning.density=2"], "density=2"),
        (["pruning.methd=movement"], "did you mean method"),
        (["training.steps=3", "pruning.warmup=2", "pruning.cooldown=2"], "at least 5 steps"),
        (["pruning.targets=[quary]"], "near names: query"),
        (["task.label=lable"], "label"),
        (["task.train=nowhere.tsv"], "nowhere.tsv"),
        (["task.labels=[maybe, never]"], "maybe"),
        (["model=nowhere/at/all"], "nowhere/at/all"),
        (["density"], "pruning.density=0.03"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, arguments, said, capsys, tmp_path):
    assert call("run", place / "recipe.yaml", *arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("fineprune: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["evaluate", "nowhere"], "needs the folder of a run"),
        (["inspect", "nowhere"], "no model in it"),
        (["predict", "nowhere"], "give texts"),
        (["predict", "nowhere", "text"], "no model in it"),
        (["predict", "nowhere", "text", "--pair", "a", "--pair", "b"], "2 of --pair"),
        (["predict", "nowhere", "--file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_folders_and_files(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", LONG], "no such file, and no recipe of that name"),
        (["run", "tiny.yaml", "--out", LONG], "(File name too long); name another folder with --out"),
        (["evaluate", LONG], "no recipe.yaml in it"),
        (["inspect", LONG], "cannot be read (File name too long)"),
        (["predict", LONG, "text"], "no model in it"),
        (["predict", "tiny", "--file", LONG], "cannot be read: File name too long"),
        (["compact", "tiny", LONG], "cannot be written (File name too long)"),
        (["report", LONG], "no such folder"),
        (["study", "tiny-study.yaml", "--out", LONG, "--table"], "no such folder"),
        (["demo", "--out", LONG], "cannot be made (File name too long)"),
    ],
)
def test_names_that_no_file_can_have(place, arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(place / "tiny")
    (tmp_path / "tiny.yaml").symlink_to(place / "recipe.yaml")
    (tmp_path / "tiny-study.yaml").write_text(
        "name: s\nrecipes: {a: tiny.yaml}\naxes: {method: [movement], density: [0.5]}\n"
    )
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_text_that_is_not_utf8(place, finished, capsys):
    (place / "latin.txt").write_bytes(b"film\ncaf\xe9\n")
    assert call("predict", finished, "--file", place / "latin.txt") == 2
    error = capsys.readouterr().err
    assert error.endswith("latin.txt, line 2: byte 0xe9 is not UTF-8 text; save the file as UTF-8\n")
    assert error.count("\n") == 1


def test_unknown_command_is_code_2():
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fineprune", "prune"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert "No such command" in done.stderr
