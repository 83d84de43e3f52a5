"""What tests of several folders share and a fixture would make clumsy."""

import sys

import pytest

from fineprune import cli


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
