"""A model of a few thousand weights and a tokenizer of a few words, saved as users save theirs."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from fineprune.tasks.text import reading
from fineprune.tasks.text.task import ClassificationConfig


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """`write(name, text)` makes a file and returns its path."""

    def make(name: str, text: str) -> str:
        (tmp_path / name).write_bytes(text.encode())
        return str(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def pretrained(save_body: Callable[..., str]) -> str:
    """A folder with a BERT body of three layers, without a head, and its tokenizer."""
    return save_body(num_hidden_layers=3)


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

        monkeypatch.setattr(reading, "read_hub", read)
        return ClassificationConfig(hub="glue", subset="sst2")

    return make
