"""A model of a few hundred weights, its tokenizer, and data that it can learn."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "a", "b"]
STEPS = 12
WEIGHTS = 2 * (4 * 8 * 8 + 2 * 8 * 16)  # of the target matrices: two blocks


def text_of(rng: random.Random, label: int) -> str:
    """A text of 1 to 7 words, with the word that tells its label."""
    words = [rng.choice(WORDS[7:]) for _ in range(rng.randint(0, 6))]
    words.insert(rng.randint(0, len(words)), WORDS[5 + (label + 1) % 2])
    return " ".join(words)


@pytest.fixture(scope="session")
def tokenizer():
    """Ids are positions in WORDS."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


def bert_config(**values: Any):
    """Two blocks; parameters are spread wide so that different inputs get different answers."""
    from transformers import BertConfig

    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 32,
        "initializer_range": 0.5,
    }
    return BertConfig(**(settings | values))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """`make_model(**config)`: always the same weights; dropout as in BERT unless told otherwise."""
    from transformers import BertForSequenceClassification

    def make(**values: Any):
        torch.manual_seed(7)
        return BertForSequenceClassification(bert_config(**values))

    return make


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> str:
    """A folder with the body, without a head, and its tokenizer."""
    from transformers import BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    BertModel(bert_config()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def rows(tokenizer):
    """48 examples: 6 steps of batch 8 are an epoch."""
    from datasets import Dataset

    rng = random.Random(0)
    labels = [index % 2 for index in range(48)]
    return Dataset.from_dict({**tokenizer([text_of(rng, label) for label in labels]), "labels": labels})


@pytest.fixture
def make_trainer(make_model, rows, tokenizer, tmp_path: Path) -> Callable[..., Any]:
    """`make_trainer(pruning, folder, model=..., optimizers=..., **arguments)`, quiet, 12 steps of batch 8."""
    from transformers import DataCollatorWithPadding, PrinterCallback, TrainingArguments, set_seed

    from fineprune import PruningTrainer

    def make(pruning: Any, folder: str = "out", *, given: dict[str, Any] | None = None, **values: Any):
        settings = {
            "output_dir": str(tmp_path / folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "weight_decay": 0.01,
            "warmup_steps": 2,
            "save_strategy": "steps",
            "save_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_steps": 1,
            "seed": 3,
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "use_cpu": True,
        }
        arguments = TrainingArguments(**(settings | values))
        set_seed(arguments.seed)
        parts: dict[str, Any] = {
            "args": arguments,
            "data_collator": DataCollatorWithPadding(tokenizer),
            "train_dataset": rows,
            "eval_dataset": rows.select(range(12)),
        } | (given or {})
        if "model" not in parts and "model_init" not in parts:
            parts["model"] = make_model()
        trainer = PruningTrainer(pruning=pruning, **parts)
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


@pytest.fixture
def files(tmp_path: Path, pretrained: str) -> SimpleNamespace:
    """`train` (48 rows, TSV), `validation` (20 rows, JSONL) and `recipe(**sections)` over them."""
    import json

    rng = random.Random(1)
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [f"{text_of(rng, index % 2)}\t{('neg', 'pos')[index % 2]}" for index in range(48)]
    (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    cells = [
        {"text": text_of(rng, index % 2), "label": ("neg", "pos")[index % 2], "id": index}
        for index in range(20)
    ]
    (folder / "validation.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))

    def recipe(**sections: Any):
        from fineprune.training.recipe import Recipe

        values: dict[str, Any] = {
            "model": pretrained,
            "task": {
                "train": str(folder / "train.tsv"),
                "validation": str(folder / "validation.jsonl"),
            },
            "training": {
                "steps": STEPS,
                "batch_size": 8,
                "learning_rate": 1e-2,
                "max_length": 16,
                "evaluate_every": 4,
                "seed": 5,
            },
            "pruning": {"method": "movement", "density": 0.25},
        }
        for name, section in sections.items():
            values[name] = values[name] | section if isinstance(section, dict) else section
        return Recipe.from_dict(values)

    return SimpleNamespace(
        folder=folder, train=folder / "train.tsv", validation=folder / "validation.jsonl", recipe=recipe
    )
