"""Methods that only a test has."""

import pytest

from fineprune.pruning import preparing


@pytest.fixture
def prepare_with(monkeypatch):
    """`prepare_with(kind, model, config, total)`: prepare, with the method class `kind`."""

    def run(kind, model, config, total):
        with monkeypatch.context() as patch:
            patch.setattr(preparing, "method_class", lambda _name: kind)
            return preparing.prepare(model, config, total)

    return run
