"""Methods that only a test has."""

import pytest

from fineprune.pruning import pruner


@pytest.fixture
def prepare_with(monkeypatch):
    """`prepare_with(kind, model, config, total)`: prepare, with the method class `kind`."""

    def run(kind, model, config, total):
        with monkeypatch.context() as patch:
            patch.setattr(pruner, "method_class", lambda _name: kind)
            return pruner.prepare(model, config, total)

    return run
