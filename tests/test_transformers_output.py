"""What transformers prints is held back inside a block, and its settings come back."""

import logging

import pytest
from transformers import logging as output

from fineprune._transformers_output import quiet, without_load_report


@pytest.fixture
def settings():
    """Verbosity and bars as they were before the test, afterwards."""
    level, bars = output.get_verbosity(), output.is_progress_bar_enabled()
    yield
    output.set_verbosity(level)
    (output.enable_progress_bar if bars else output.disable_progress_bar)()


@pytest.fixture
def logged():
    """The messages of the logger that reports on loading."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("transformers.modeling_utils"), Keep()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("bars", [True, False])
def test_quiet_holds_back_advice_and_bars(bars):
    output.set_verbosity_info()
    (output.enable_progress_bar if bars else output.disable_progress_bar)()

    def fail():
        with quiet():
            assert output.get_verbosity() == output.ERROR
            assert not output.is_progress_bar_enabled()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert output.get_verbosity() == output.INFO
    assert output.is_progress_bar_enabled() is bars


def test_the_report_of_loading_is_held_back_and_nothing_else(logged):
    logger = logging.getLogger("transformers.modeling_utils")
    with without_load_report():
        logger.warning("BertModel LOAD REPORT: new weights")
        logger.warning("another thing")
        assert logged == ["another thing"]
    logger.warning("LOAD REPORT of others")
    assert logged == ["another thing", "LOAD REPORT of others"]


def test_the_report_comes_out_when_the_block_fails(logged):
    def fail():
        with without_load_report():
            logging.getLogger("transformers.modeling_utils").warning("LOAD REPORT: new weights")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert logged == ["LOAD REPORT: new weights"]
