import logging
import subprocess
import sys
import warnings

from fineprune._warnings import collected
from fineprune.errors import FinepruneWarning


def test_ours_are_collected_once_and_others_are_not():
    logger = logging.getLogger("fineprune")
    with warnings.catch_warnings(record=True) as shown, collected() as texts:
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("one", FinepruneWarning, stacklevel=1)
        logger.warning("two %d", 2)
        logger.info("not this")
        warnings.warn("nor this", UserWarning, stacklevel=1)
    logger.warning("nor what comes later")
    assert texts == ["one", "two 2"]
    assert [str(entry.message) for entry in shown] == ["one", "one", "nor this"]


def test_on_the_command_line_they_are_lines():
    code = """
import warnings
from fineprune._warnings import show_as_lines
from fineprune.errors import FinepruneWarning
show_as_lines()
warnings.warn("of two\\nlines", FinepruneWarning)
warnings.warn("another", UserWarning)
import logging
from fineprune._warnings import collected
with collected():
    logging.getLogger("fineprune").warning("of the %s", "log")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours, other, *_ = done.stderr.splitlines()
    assert ours == "fineprune: warning: of two lines"
    assert other.endswith("UserWarning: another")
    assert done.stderr.splitlines()[-1] == "fineprune: warning: of the log"
