"""What tests of several folders share and a fixture would make clumsy."""

import sys

import pytest

from fineprune import cli
from fineprune.config import METHODS

PRUNING = tuple(name for name, traits in METHODS.items() if not traits.holds_zeros)
"""The methods that start from a dense model and end at the density asked for."""


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
