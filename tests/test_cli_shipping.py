"""`fineprune compact` and `export`, and what the other commands do with the folders that they write."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import call, write_recipe

import fineprune
from fineprune.training.run import evaluate
from fineprune_runtime import native

EXPORT = ("transformers.exporters", "onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def place(save_body) -> Path:
    """`tiny`, a pre-trained model wide enough that packing pays, `run`, a run of it, `small`, packed."""
    model = Path(save_body(hidden_size=64, intermediate_size=128, initializer_range=0.02))
    folder = model.parent
    rng = random.Random(0)
    rows = [
        f"{'very ' * rng.randint(0, 3)}{('bad', 'good')[i % 2]} film\t{('no', 'yes')[i % 2]}"
        for i in range(40)
    ]
    write_recipe(folder, model, rows, density=0.125)
    (folder / "texts.txt").write_text("good film\nbad film\n", encoding="utf-8")
    assert call("run", folder / "recipe.yaml", "--out", folder / "run") == 0
    assert call("compact", folder / "run", folder / "small") == 0
    return folder


def refused(capsys, *arguments) -> str:
    """What is said of input that cannot work: one line, exit code 2."""
    capsys.readouterr()
    assert call(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("fineprune: ")
    assert told.err.count("\n") == 1
    return told.err


def test_compact_prints_sizes(place, capsys, tmp_path):
    assert call("compact", place / "run", tmp_path / "small") == 0
    told = capsys.readouterr()
    assert told.err == ""
    first, second = told.out.splitlines()
    # 2 blocks of 4 64x64 and 2 64x128 matrices
    size = (tmp_path / "small/model.safetensors").stat().st_size
    dense = json.loads((tmp_path / "small/fineprune.json").read_text())["dense_bytes"]
    assert size < dense / 3
    assert first == (
        f"{size / 1e6:.1f} MB of weights, {size / dense:.1%} of {dense / 1e6:.1f} MB dense; "
        "density 12.50% of the stored matrices"
    )
    assert second == f"outputs on a probe batch differ by 0 of the largest; model: {tmp_path / 'small'}"


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ([], True),
        (["--values", "int8", "--embeddings", "int4"], False),
        (["--vocabulary", "texts.txt"], None),
        (["--base", "tiny"], True),
        (["--base", "tiny", "--values", "float16"], False),
        (["--format", "dense"], True),
    ],
)
def test_forms(options, exact, place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    capsys.readouterr()
    assert call("compact", "run", tmp_path / "new", "--json", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"folder", "bytes", "dense_bytes", "density", "difference"}
    assert told["folder"] == str(tmp_path / "new")
    assert told["density"] == 0.125
    assert exact is None or (told["difference"] == 0) == exact
    answers = []
    for model in ("run", tmp_path / "new"):
        assert call("predict", model, "good film", "bad film", "--json") == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [row["label"] for row in answers[0]] == [row["label"] for row in answers[1]]
    for one, other in zip(*answers, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6 if exact else 0.05)


def test_the_place_of_the_model(place, capsys, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    assert call("compact", tmp_path / "run", tmp_path / "run/model") == 0
    assert call("evaluate", tmp_path / "run", "--json") == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores == json.loads((tmp_path / "run/results.json").read_text())["scores"]


def test_evaluate_another_model(place, capsys):
    capsys.readouterr()
    scores = []
    for options in ([], ["--model", place / "small"], ["--model", place / "run"]):
        assert call("evaluate", place / "run", "--json", *options) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] == scores[2]
    data = ["--data", place / "train.tsv"]
    assert call("evaluate", place / "run", "--model", place / "small", *data) == 0
    assert f"accuracy   {scores[0]['accuracy']:.4f}" in capsys.readouterr().out
    assert "no model in it" in refused(capsys, "evaluate", place / "run", "--model", place / "nowhere")
    assert "needs the folder of a run" in refused(capsys, "evaluate", place / "small")


def test_evaluate_in_the_engine(place, capsys, monkeypatch):
    found, engines = {}, []

    def accelerated(model, dtype):
        engines.append(dtype)
        return fineprune.accelerate(model, dtype)

    monkeypatch.setattr(evaluate, "accelerate", accelerated)
    for dtype in (None, "float32", "int8"):
        options = [] if dtype is None else ["--dtype", dtype]
        capsys.readouterr()
        assert call("evaluate", place / "run", "--model", place / "small", "--json", *options) == 0
        found[dtype] = json.loads(capsys.readouterr().out)
    torch_alone, exact, coarse = found.values()
    assert exact == pytest.approx(torch_alone, abs=1e-5)
    assert coarse == pytest.approx(torch_alone, abs=0.1)
    assert engines == ["float32", "int8"]
    assert "did you mean int8? allowed are" in refused(capsys, "evaluate", place / "run", "--dtype", "int9")
    monkeypatch.setattr(native, "dtypes", lambda: ("float32",))
    assert "this processor has float32" in refused(capsys, "evaluate", place / "run", "--dtype", "int8")


def test_predict(place, capsys):
    capsys.readouterr()
    told = []
    for model in ("run", "small"):
        assert call("predict", place / model, "good film") == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert told[0].endswith("\tgood film\n")


def test_inspect(place, capsys, tmp_path):
    assert call("compact", place / "run", tmp_path / "delta", "--base", place / "tiny") == 0
    capsys.readouterr()
    for folder, said in (
        (place / "run", "zeros are stored in full"),
        (place / "small", "packed"),
        (tmp_path / "delta", "packed"),
    ):
        assert call("inspect", folder) == 0
        told = capsys.readouterr()
        assert told.err == ""
        weights = next(iter([*folder.glob("*.safetensors"), *folder.glob("model/*.safetensors")]))
        assert f"weights on disk: {weights.stat().st_size / 1e6:.1f} MB ({said})" in told.out
        assert "12.50%" in told.out
        assert ("accuracy" in told.out) == (folder.name == "run")
    assert call("inspect", place / "small", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == (place / "small/model.safetensors").stat().st_size
    # 2 blocks of 4 64x64 and 2 64x128 matrices, an eighth of each
    assert (told["kept"], told["total"], told["scores"]) == (8192, 65536, None)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"scores": {}}'])
def test_damaged_results(content, place, capsys, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run/results.json").write_text(content)
    said = "not the results of a run" if content else "cannot be read, it is damaged"
    assert f"results.json: {said}" in refused(capsys, "inspect", tmp_path / "run")
    assert f"results.json: {said}" in refused(capsys, "frontier", tmp_path / "run")
    assert f"results.json: {said}" in refused(capsys, "compact", tmp_path / "run", tmp_path / "small")
    assert call("compact", tmp_path / "run/model", tmp_path / "small") == 0  # as the message says


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "new"], "nowhere: no model in it; name a run or a model folder, there is no such"),
        (["texts.txt", "new"], "texts.txt: no model in it; name a run or a model folder, this is a file"),
        (["run", "run/model", "--values", "int8"], "run/model: is the model that is read, and would be rep"),
        (["run", "run/model", "--vocabulary", "texts.txt"], "run/model: is the model that is read"),
        (["unfinished", "new"], "the run is not finished: fineprune run … --resume"),
        (["run", "run"], "run: not empty, and no model that could be replaced"),
        (["run", "texts.txt"], "texts.txt: is a file"),
        (["run", "texts.txt/below"], "cannot be made"),
        (["run", "full"], "full: not empty"),
        (["run", "new", "--format", "dense", "--values", "int8"], "--format dense: takes no --values"),
        (["run", "new", "--format", "dense", "--base", "tiny"], "--format dense: takes no --values"),
        (["run", "new", "--base", "no/where"], "base='no/where': cannot be loaded"),
        (["run", "tiny", "--base", "tiny"], "tiny: is the base"),
        (["run", "new", "--base", "tiny", "--embeddings", "int8"], "a delta takes the base's"),
        (["run", "new", "--base", "tiny", "--vocabulary", "texts.txt"], "only a whole model"),
        (["run", "new", "--vocabulary", "nowhere.txt"], "nowhere.txt: cannot be read: No such file"),
        (["run", "new", "--vocabulary", "empty.txt"], "empty.txt: no text in it"),
        (["run", "new", "--vocabulary", "latin.txt"], "latin.txt, line 1: byte 0xe9 is not UTF-8 text; save"),
        (["run", "new", "--threshold", "0.1"], "an ordinary checkpoint"),
        (["run", "new", "--method", "topK", "--threshold", "0.1"], "an ordinary checkpoint"),
    ],
)  # fmt: skip
def test_bad_input(arguments, said, place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "tiny"):
        (tmp_path / name).symlink_to(place / name)
    for name in ("unfinished/recipe.yaml", "full/data.csv", "texts.txt", "empty.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.txt" else "good film\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    before = {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*"), *place.rglob("*")]}
    assert said in refused(capsys, "compact", *arguments)
    assert {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*"), *place.rglob("*")]} == before


def test_a_changed_base(place, capsys, tmp_path):
    shutil.copytree(place / "tiny", tmp_path / "tiny")
    assert call("compact", place / "run", tmp_path / "delta", "--base", tmp_path / "tiny") == 0
    shutil.rmtree(tmp_path / "tiny")
    for command in ("inspect", "predict"):
        text = ["text"] if command == "predict" else []
        assert "tiny': cannot be loaded" in refused(capsys, command, tmp_path / "delta", *text)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in EXPORT), reason="needs fineprune[export]"
)
def test_export(place, capsys, tmp_path):
    capsys.readouterr()
    assert call("export", place / "small", tmp_path / "onnx", "--to", "onnx") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "MB: zeros are stored in full" in told.out
    assert f"model: {tmp_path / 'onnx'}" in told.out
    assert {"model.onnx", "config.json", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "onnx").iterdir()
    }
    assert "not an empty folder" in refused(
        capsys, "export", place / "small", tmp_path / "onnx", "--to", "onnx"
    )


def test_bad_exports(place, capsys, tmp_path):
    out = tmp_path / "out"
    assert "no model in it" in refused(capsys, "export", place / "nowhere", out, "--to", "onnx")
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "option", "value", "allowed"),
    [
        ("compact", "--values", "int9", ("float32", "float16", "bfloat16", "int8")),
        ("compact", "--embeddings", "int5", ("keep", "float16", "int8", "int4")),
        ("compact", "--format", "denze", ("compact", "dense")),
        ("export", "--to", "onyx", ("onnx", "openvino")),
    ],
)
def test_choices_that_there_are_not(command, option, value, allowed, place, capsys, tmp_path):
    assert call(command, place / "small", tmp_path / "out", option, value) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"'{value}' is not one of" in told
    assert all(f"'{name}'" in told for name in allowed)
    assert not (tmp_path / "out").exists()


def test_help_needs_no_torch():
    code = (
        "import sys; from fineprune.cli import app;"
        "[app([name, '--help'], standalone_mode=False) for name in ('compact', 'export', 'evaluate')];"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    environment = os.environ | {"COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--vocabulary" in done.stdout
    assert "--int8" in done.stdout
