"""Fixtures for the files of embedding tasks."""

import pytest


@pytest.fixture
def write(tmp_path):
    """`write(name, text)` makes a file and returns its path."""

    def make(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make
