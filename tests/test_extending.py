"""The examples of docs/extending.md, as they are printed there."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from support import call, tiny_bert
from torch import nn

from fineprune import FinepruneError, PruningConfig, accelerate, finalize, prepare
from fineprune import config as config_module
from fineprune.checkpoint.loading import open_model
from fineprune.config import METHODS
from fineprune.study.grid import Study
from fineprune.tasks import kinds
from fineprune.training.run.evaluate import evaluate_run
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def examples(heading: str) -> list[str]:
    """The blocks of Python under a heading of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`written(block)`: the module that a block with its file's name in the first line makes."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(block):
        name = block.partition("\n")[0].removeprefix("# ").removesuffix(".py")
        (tmp_path / f"{name}.py").write_text(block)
        return importlib.import_module(name)

    return write


@pytest.fixture
def methods(monkeypatch):
    """The table of methods, as it was before afterwards."""
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def train(config, steps=10):
    pruner = prepare(Net(), config, steps)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    for _ in range(steps):
        (pruner.model(torch.ones(3, 8)).square().mean() + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    return pruner


def test_a_method_is_a_file_and_a_line(written, methods):
    file, line = examples("A method")
    written(file)
    exec(line, vars(config_module))
    pruner = train(PruningConfig("taylor", density=0.25))
    assert pruner.density == 0.25
    finalize(pruner.model)
    with pytest.raises(FinepruneError, match="method='tailor': did you mean taylor"):
        PruningConfig("tailor")
    axes = {"method": ["dense", "taylor"], "density": [0.1]}
    study = Study.from_dict({"name": "s", "recipes": {"sst2": "small-sst2"}, "axes": axes})
    assert [cell.name for cell in study.cells()] == ["sst2-dense-s0", "sst2-taylor-0.1-s0"]


def test_a_kind_of_unit_is_a_function(written, methods):
    (file,) = examples("A kind of unit")
    written(file)
    METHODS["row_pairs"] = METHODS["movement"]._replace(where="row_pairs:RowPairMovement")
    pruner = train(PruningConfig("row_pairs", density=0.5))
    assert pruner.density == 0.5
    for target in pruner.targets:
        pairs = target.masked.mask.view(4, -1)
        assert (pairs.all(1) | ~pairs.any(1)).all()


def test_a_host_is_any_trainer(written, tmp_path):
    from transformers import TrainingArguments

    (file,) = examples("A host trainer")
    made = written(file).PruningWeightedTrainer
    model = tiny_bert(num_labels=2)
    rows = [{"input_ids": [2, 5 + i % 3, 3], "labels": i % 2} for i in range(16)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=10, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = made(model=model, args=arguments, train_dataset=rows, pruning=PruningConfig(density=0.25))
    trainer.train()
    assert trainer.pruner.density == pytest.approx(0.25, abs=1e-3)


def test_a_kind_of_task_is_a_module_and_an_entry(written, monkeypatch, save_body, tmp_path, capsys):
    file, entry = examples("A kind of task")
    made = eval(entry, vars(kinds) | {"next_sentence": written(file)})
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, made))
    lines = ["good film\tvery good\tfollows", "good film\tbad\trandom"] * 4
    (tmp_path / "a.tsv").write_text("\n".join(["first\tsecond\tlabel", *lines]) + "\n")
    task = {"kind": "next_sentence"} | dict.fromkeys(("train", "validation"), str(tmp_path / "a.tsv"))
    training = {
        "steps": 16,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "max_length": 16,
        "evaluate_every": 1,
        "dropout": 0,
    }
    recipe = {"model": save_body(), "task": task, "training": training, "pruning": {"density": 0.25}}
    results = run_recipe(Recipe.from_dict(recipe), tmp_path / "run", progress=False)
    assert (results["metric"], results["score"], results["density"]) == ("accuracy", 1.0, 0.25)
    assert evaluate_run(tmp_path / "run") == pytest.approx(results["scores"])
    assert type(open_model(tmp_path / "run").model).__name__ == "BertForNextSentencePrediction"
    capsys.readouterr()
    assert call("predict", tmp_path / "run", "good film", "--pair", "bad") == 0
    label, _, *texts = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (label, texts) == ("random", ["good film", "bad"])


def test_an_architecture_of_the_engine_is_a_line(monkeypatch):
    from transformers import CamembertConfig, CamembertForSequenceClassification

    from fineprune_runtime import architectures

    monkeypatch.setattr(architectures, "ARCHITECTURES", dict(architectures.ARCHITECTURES))
    (line,) = examples("An architecture of the engine")
    exec(line, {})
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = CamembertConfig(vocab_size=30, max_position_embeddings=12, initializer_range=0.5, **sizes)
    model = CamembertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter[torch.rand(parameter.shape) < 0.9] = 0
    ids = torch.randint(5, 30, (3, 7))
    with torch.no_grad():
        expected = model(ids).logits
        accelerate(model)
        assert type(model.roberta.encoder).__name__ == "EncoderModule"
        assert torch.allclose(model(ids).logits, expected, atol=1e-4)
