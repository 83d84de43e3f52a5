"""Benchmarks run: their smallest cases."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sentence_folders import sentence_folder, texts

from fineprune import save_compact
from fineprune_runtime import dtypes, levels

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not levels(), reason="the engine has no native library here")


@pytest.fixture
def run(monkeypatch, capfd):
    """`run("engine", *arguments)`: what benchmarks/engine.py prints, run in this process."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def call(name, *arguments) -> str:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        importlib.import_module(name).main()
        return capfd.readouterr().out

    return call


def test_engine(tmp_path, run):
    places = ["--out", tmp_path / "out", "--results", tmp_path / "results"]
    small = [*places, "--shape", "tiny", "--threads", 1, "--rounds", 2]
    case = [*small, "--density", 0.1, "--case", "1x8", "--only", "engine float32", "torch CSR"]
    assert "tiny 10% 1x8 1 threads" in run("engine", *case)
    (path,) = (tmp_path / "out").glob("case-*.json")
    found = json.loads(path.read_text())
    assert set(found["peers"]) == {"torch", "engine float32", "torch CSR"}
    assert all(row["error"] < 1e-5 for row in found["peers"].values())
    assert run("engine", *case) == ""  # it is there
    assert run("engine", *case, "--again") != ""
    assert set(json.loads(path.read_text())["peers"]) == set(found["peers"])
    run("engine", *places, "--table")
    assert "| tiny | 90% | 1x8 | 1 |" in (tmp_path / "results/engine.md").read_text()


@pytest.mark.parametrize("shape", ["tiny-4x1", "tiny-bias"])
def test_engine_takes_blocks_and_the_bias_by_distance(tmp_path, run, shape):
    names = ["torch CSR", "engine float32", "onnxruntime", "OpenVINO"]
    arguments = ["--shape", shape, "--density", 0.3, "--case", "2x150", "--threads", 1, "--rounds", 1]
    run("engine", "--out", tmp_path, *arguments, "--only", *names)
    (path,) = tmp_path.glob("case-*.json")
    found = json.loads(path.read_text())
    assert not found["missing"]
    assert all(row["error"] < 1e-5 for row in found["peers"].values())  # 150 tokens: beyond the reach, too


def test_break_even_runs(tmp_path, run, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import break_even

    monkeypatch.setattr(break_even, "DENSE", ("torch",))
    places = ["--out", tmp_path, "--results", tmp_path]
    small = [*places, "--break-even", "--shape", "tiny", "--case", "1x8", "--threads", 1, "--rounds", 2]
    assert run("engine", *small, "--density", 0.1, 0.5).count("\n") == 2
    run("engine", *places, "--table")
    assert "| engine float32 | " in (tmp_path / "engine_break_even.md").read_text()


def test_blocks(run, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import blocks

    monkeypatch.setattr(blocks, "SHAPES", ((8, 16),))
    found = run("blocks", "--density", 0.5, "--rounds", 1)
    assert "| 8 x 16 | 4 x 1 | 50% | float32 | " in found
    assert "float32: column " in run("blocks", "--costs", "--rounds", 1)


def test_roofline(tmp_path, run):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    places = ["--out", tmp_path, "--results", tmp_path]
    run("engine", *places, "--roofline", "--shape", "tiny", "--density", 0.1, "--rounds", 2)
    core = json.loads((tmp_path / "roofline.json").read_text())["core"]
    assert min(core.values()) > 0
    run("engine", *places, "--table")
    assert "| 64 x 32 | 90% | float32 |" in (tmp_path / "engine_roofline.md").read_text()


def test_crossing(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import break_even

    assert break_even.crossing([(0.1, 4), (0.4, 0.25)]) == pytest.approx(0.2)
    assert break_even.crossing([(0.4, 0.5), (0.1, 2), (0.05, 0.9)]) == pytest.approx(0.2)
    assert break_even.crossing([(0.1, 4), (0.2, 0.99), (1.0, 1.01)]) == 1
    assert break_even.crossing([(0.1, 0.9), (1.0, 0.5)]) is None


def test_memory(run, monkeypatch):
    size = ["--layers", 1, "--width", 16]
    found = {name: json.loads(run("memory", "--only", name, *size)) for name in ("dense", "l0, sgd")}
    monkeypatch.syspath_prepend(BENCHMARKS)
    import memory

    # weight and score, gradients, Adam's 8 bytes and sgd's 2, the mask; saved: W', the gate, the penalty's
    line = memory.table(found).splitlines()[3].split(" | ")
    assert [round(float(cell)) for cell in line[1:5]] == [8, 8, 10, 1]
    assert float(line[5]) >= 12
    assert [round(found["dense"][part]) for part in ("parameters", "gradients", "optimizer")] == [4, 4, 8]


def test_overhead_of_two_processes(run):
    small = ["--layers", 1, "--batch", 4, "--tokens", 8, "--rounds", 2]
    printed = run("overhead", "--processes", 2, *small, "--only", "movement, local", "soft_movement")
    first, _, _, *rows = printed.splitlines()
    assert first.startswith("batch 4 x 8, 2 processes, 1 threads, ")
    assert rows[0] == "| dense | 1.00 | 1.00 - 1.00 |"
    assert [row.split(" | ")[0] for row in rows] == ["| dense", "| movement, local", "| soft_movement"]


def test_engine_answers(tmp_path, make_run, run):
    rows = "".join(f"{'very ' * (at % 3)}good film\t{at % 2}\n" for at in range(5))
    (tmp_path / "dev.tsv").write_text(f"sentence\tlabel\n{rows}")
    data = f"train: {tmp_path}/dev.tsv, validation: {tmp_path}/dev.tsv, text: sentence, label: label"
    (tmp_path / "run/recipe.yaml").write_text(
        f"model: {{name: {make_run}}}\ntask: {{{data}}}\ntraining: {{steps: 1}}\n"
    )
    run("engine_answers", tmp_path / "run", "--texts", 6, "--rounds", 1, "--results", tmp_path)
    (model,) = json.loads((tmp_path / "engine_answers.json").read_text())
    assert model["peers"]["engine float32"]["differs"] == 0
    assert model["peers"]["runtime float32"]["differs"] == 0
    assert model["peers"]["torch"]["score"] == model["peers"]["engine float32"]["score"]
    assert "% | engine float32 |" in (tmp_path / "engine_answers.md").read_text()


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "deberta-v2"])
def test_architectures(run, monkeypatch, architecture):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import engine_architectures

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    monkeypatch.setitem(
        engine_architectures.SETTINGS, architecture, engine_architectures.SETTINGS[architecture] | sizes
    )
    printed = run(
        "engine_architectures",
        "--architecture",
        architecture,
        "--density",
        0.3,
        "--case",
        "2x9",
        "--rounds",
        1,
    )
    (row,) = [
        line.split(" | ") for line in printed.splitlines() if line.startswith(f"| {architecture} | 70% |")
    ]
    assert len(row) == 4 + 2 * len(dtypes())
    assert float(row[4 + len(dtypes())]) < 1e-5  # of float32


def test_real_masks(tmp_path, make_run, run):
    printed = run("real_masks", make_run, "--length", 8, "--rounds", 2, "--results", tmp_path)
    (model,) = json.loads((tmp_path / "real_masks.json").read_text())
    assert set(model["ratios"]["float32"]) == {"real", "by matrix", "uniform"}
    assert f"| run | {model['density']:.0%} | float32 | " in printed


def test_random_masks_keep_the_weights_of_a_matrix_or_of_the_model(make_run, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import real_masks
    import torch

    from fineprune.checkpoint.loading import open_model
    from fineprune.pruning.targets import find_targets

    def counts(model):
        return [int(module.weight.count_nonzero()) for module in find_targets(model).values()]

    model = open_model(make_run).model
    moved, even = real_masks.shuffled(model, False), real_masks.shuffled(model, True)
    assert counts(moved) == counts(model)
    sizes = [module.weight.numel() for module in find_targets(model).values()]
    share = sum(counts(model)) / sum(sizes)
    assert counts(even) == [round(share * size) for size in sizes]
    for name, module in find_targets(moved).items():
        before = model.get_submodule(name).weight
        assert sorted(module.weight.flatten().tolist()) == sorted(before.flatten().tolist())
        assert not torch.equal(module.weight, before)


@pytest.fixture
def make_run(tmp_path, bert_config, tokenizer) -> Path:
    """A run folder with a pruned model in it."""
    import torch
    from transformers import BertForSequenceClassification

    from fineprune.pruning.targets import find_targets

    model = BertForSequenceClassification(bert_config(hidden_size=16, intermediate_size=32)).eval()
    with torch.no_grad():
        for module in find_targets(model).values():
            module.weight *= torch.rand_like(module.weight) < 0.1
    folder = tmp_path / "run" / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_score_correlation(tmp_path, run):
    data = tmp_path / "train.tsv"
    data.write_text("sentence\tlabel\n" + "".join(f"a film {i}\t{i % 2}\n" for i in range(26)))
    small = ["--dense", 1, "--steps", 12, "--batch", 2, "--layers", 1]
    assert "movement             correlation  1.00, shared 1.00" in run(
        "score_correlation", "--data", data, "--out", tmp_path, *small
    )
    found = json.loads((tmp_path / "scores-by-rank.json").read_text())
    assert len(found["correlation"]) == len(found["scores"]) == 10
    assert (tmp_path / "scores-by-rank.png").stat().st_size > 10_000


def test_density_control(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import density_control
    import torch

    sizes = torch.tensor([100.0, 300.0], dtype=torch.float64)
    assert density_control.shifted(torch.zeros(2), sizes, 0.25) == pytest.approx([0.25, 0.25])
    # sigmoid(t + 1 + c) and sigmoid(t + c) with e^c = x: 100 e x / (1 + e x) + 300 x / (1 + x) = 200
    first, second = density_control.shifted(torch.tensor([1.0, 0.0]), sizes, 0.5)
    assert (100 * first + 300 * second) / 400 == pytest.approx(0.5)
    assert first / (1 - first) == pytest.approx(2.718281828 * second / (1 - second))

    scores = SimpleNamespace(scores=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    law = density_control.Lagrangian(0.5)
    law.targets, law.density = [scores], 0.25
    # Three of four are above 1.5, an error of 0.5; Adam's first step is its rate: 0.5 + 2 * 0.5 * 0.5
    assert law(2.0, 1.5, 1.0, 4) == pytest.approx(1.0)
    assert law.off == 0.5
    law.density = 1.0
    assert law(2.0, 9.0, 1.0, 4) < 1.0

    learned = density_control.LearnedShares(rate=0.1)
    units = SimpleNamespace(units=torch.tensor([True, False]), grid=SimpleNamespace(cost=1))
    matrices = [SimpleNamespace(scores=torch.nn.Parameter(torch.zeros(2)), masked=units) for _ in range(2)]
    assert learned(matrices, 0.5) == pytest.approx([0.5, 0.5])
    for matrix, gradient in zip(matrices, ([-1.0, 9.0], [1.0, -9.0]), strict=True):
        (matrix.scores * torch.tensor(gradient)).sum().backward()
    # The kept units of the first matrix lower the loss: t moves by the rate, up and down; sigmoid(±0.1)
    assert learned(matrices, 0.5) == pytest.approx([0.52498, 0.47502], abs=1e-5)

    rows = [{"law": "movement, learned", "seed": s, "score": 0.8 + s / 50, "dense": 0.8} for s in (0, 1)]
    shown = [*density_control.table([row | {"density": 0.25, "off": None} for row in rows])]
    assert shown[-1] == "| movement, learned | 2 | 81.0 ± 1.0 | 101.2 % | 25.00 % |  |"


def test_reranker(tmp_path, run, make_run):
    """The sentence with the answer, and another one; all sentences of other questions are ranked."""
    context = "A film is good. It has Mr. Bad in it! Is it very bad? 4 films are."
    starts = {"What is good?": 0, "Who is in it?": 23, "How is it?": 38, "How many?": 54}
    asked = [
        {"id": name, "question": name, "answers": [{"text": context[at : at + 3], "answer_start": at}]}
        for name, at in starts.items()
    ]
    text = json.dumps({"data": [{"paragraphs": [{"context": context, "qas": asked}]}]})
    for name in ("train", "dev"):
        (tmp_path / f"{name}-v1.1.json").write_text(text)
    options = ["--data", tmp_path, "--count", 2]
    said = run("reranker", *options, "rows", "--out", tmp_path / "rows")
    assert "train.jsonl: 8 pairs of 4 questions" in said
    assert "dev.jsonl: 4 pairs of 2 questions" in said
    rows = [json.loads(line) for line in (tmp_path / "rows" / "train.jsonl").read_text().splitlines()]
    right = {row["question"]: row["sentence"] for row in rows if row["label"] == 1}
    assert right == {
        "What is good?": "A film is good.",
        "Who is in it?": "It has Mr. Bad in it!",
        "How is it?": "Is it very bad?",
        "How many?": "4 films are.",
    }
    assert all(row["sentence"] != right[row["question"]] for row in rows if row["label"] == 0)
    said = run("reranker", *options, "rank", make_run)
    assert "2 questions, 8 sentences" in said
    assert re.search(r"by chance +first  25\.0%  MRR 0\.521\n", said)  # (1 + 1/2 + 1/3 + 1/4) / 4
    assert re.search(r"model, float32 +first +\d+\.\d%  MRR [01]\.\d\d\d\n", said)


def test_sentences(tmp_path, run, save_body):
    """Pruned copies beside the dense model, and a smaller one, in each runtime: one line each."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = sentence_folder(save_body(), tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("\n".join(texts(8)))
    asked = ["--dense", folder, "--texts", tmp_path / "texts.txt", "--count", 4, "--batch", 2, "--rounds", 1]
    said = run("sentences", *asked, "--density", 0.3, "--smaller", folder)
    for model in ("dense", "smaller"):
        assert f"{model}, onnxruntime int8: vectors differ from torch's by up to 0." in said
        assert re.search(rf"^{model}, torch +\d+ texts/s +\d+\.\d\d x the first$", said, re.MULTILINE)
    for side in ("engine float32", "accelerate float32"):
        line = rf"^pruned .*small, {side} +\d+ texts/s +\d+\.\d\d x the first$"
        assert re.search(line, said, re.MULTILINE)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    importlib.import_module("sentences").cut(model, 0.3)
    small = [save_compact(model, tmp_path / name).folder for name in ("one", "two")]
    said = run("sentences", *asked, "--pruned", *small)
    assert all(f"pruned {place}, engine float32" in said for place in small)


def test_attention(run):
    printed = run("attention", "--lengths", 8, 16, "--rounds", 1, "--precision", "float32")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["8", "16"]
    assert all(float(ratio) > 0 for row in rows for ratio in row[1:])
