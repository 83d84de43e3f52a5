"""What tests of several folders share and a fixture would make clumsy."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fineprune import cli
from fineprune.config import METHODS

PRUNING = tuple(name for name, traits in METHODS.items() if traits.in_paper)
"""The paper's methods: they start from a dense model and end at the density asked for."""

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def tiny_config(**settings):
    """The config of a BERT of two blocks and 16 hidden units; `settings` win over the sizes here."""
    from transformers import BertConfig

    sizes = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 12,
    }
    return BertConfig(**(sizes | settings))


def tiny_bert(head: str = "ForSequenceClassification", seed: int = 0, **settings):
    """A BERT with the `tiny_config` of `settings`, and always the same weights."""
    import transformers

    torch.manual_seed(seed)
    return getattr(transformers, f"Bert{head}")(tiny_config(**settings))


def write_recipe(folder: Path, model: str | Path, rows: list[str], density: float) -> None:
    """Write `train.tsv` of `rows`, a text, a tab and a label each, and `recipe.yaml` of a short run on it."""
    (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        f"""
model: {model}
task: {{kind: classification, train: {folder / "train.tsv"}, validation: {folder / "train.tsv"}}}
training: {{steps: 10, batch_size: 4, learning_rate: 1e-3, max_length: 16}}
pruning: {{method: movement, density: {density}}}
""",
        encoding="utf-8",
    )


def without_progress(err: str) -> str:
    """What a command said on stderr, less the lines of a run's progress."""
    lines = err.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("training: ", "step ")))


def call(*arguments) -> int:
    """The exit code of `fineprune ARGUMENTS`, in this process."""
    before = sys.argv
    sys.argv = ["fineprune", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    return stop.value.code


def example(name: str) -> ModuleType:
    """The module of a file in `examples/`."""
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
