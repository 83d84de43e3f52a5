"""A model of a few thousand weights and a tokenizer of a few words, saved as users save theirs."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fineprune.tasks import loading
from fineprune.tasks.classification import ClassificationConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "a", "b"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """`write(name, text)` makes a file and returns its path."""

    def make(name: str, text: str) -> str:
        (tmp_path / name).write_bytes(text.encode())
        return str(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def tokenizer():
    """Ids are positions in WORDS: good is 5, bad 6, film 7, very 8; [CLS] is 2, [SEP] 3."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> str:
    """A folder with a BERT body of three layers, without a head, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=0.5,  # so that different texts get clearly different answers
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def reports():
    """What transformers' loading logs; its loggers do not reach pytest's caplog."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    logger, handler = logging.getLogger("transformers"), Keep()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture
def hub(monkeypatch):
    """`hub(train cells, validation cells, names)`: what the hub would answer."""

    def make(train: list, validation: list, names: tuple[str, ...] | None) -> ClassificationConfig:
        def read(name, subset, split, columns):
            cells = {"train": train, "validation": validation}[split]
            table = {"text": [f"text {index}" for index in range(len(cells))], "label": cells}
            return {column: table[column] for column in columns}, {} if names is None else {"label": names}

        monkeypatch.setattr(loading, "read_hub", read)
        return ClassificationConfig(hub="glue", subset="sst2")

    return make
