"""The command line end to end, on a tiny model and a file of twelve words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import call

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "a", "b"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny pre-trained model, data that can be learnt, and a recipe."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder / "tiny")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder / "tiny")
    rows = [f"{'very ' * (i % 4)}{('bad', 'good')[i % 2]} film\t{('no', 'yes')[i % 2]}" for i in range(40)]
    (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        f"""
model: {folder / "tiny"}
task: {{kind: classification, train: {folder / "train.tsv"}, validation: {folder / "train.tsv"}}}
training: {{steps: 10, batch_size: 4, learning_rate: 1e-3, max_length: 16}}
pruning: {{method: movement, density: 0.25}}
""",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def finished(place) -> Path:
    assert call("run", place / "recipe.yaml", "--out", place / "run") == 0
    return place / "run"


def test_run_prints_density_and_leaves_a_model(place, capsys):
    assert call("run", place / "recipe.yaml", "training.seed=1", "--out", place / "printed") == 0
    # 2 blocks of 4 8x8 and 2 8x16 matrices: 1,024 weights, a quarter of each kept
    assert "with 25.00% of 1,024 weights" in capsys.readouterr().out
    assert json.loads((place / "printed" / "results.json").read_text())["kept"] == 256
    assert (place / "printed" / "model" / "model.safetensors").is_file()


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


def test_predict_texts_files_and_pairs(place, finished, capsys):
    assert call("predict", finished, "good film", "bad film", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["good film", "bad film"]
    assert {row["label"] for row in rows} <= {"no", "yes"}
    (place / "pairs.txt").write_text("good\tfilm\nbad\tfilm\n", encoding="utf-8")
    assert call("predict", finished, "--file", place / "pairs.txt") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("\tbad\tfilm")


def test_inspect(finished, capsys):
    assert call("inspect", finished, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kept"], told["total"], len(told["layers"])) == (256, 1024, 12)
    assert call("inspect", finished / "model") == 0
    assert "25.00%" in capsys.readouterr().out


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


def test_text_that_is_not_utf8(place, finished, capsys):
    (place / "latin.txt").write_bytes(b"caf\xe9\n")
    assert call("predict", finished, "--file", place / "latin.txt") == 2
    assert "not UTF-8 at byte 3" in capsys.readouterr().err


def test_unknown_command_is_code_2():
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fineprune", "prune"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert "No such command" in done.stderr
