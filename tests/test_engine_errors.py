import pytest

from fineprune._engine_errors import engine_errors
from fineprune.errors import FinepruneError
from fineprune_runtime.errors import EngineError


def test_an_engine_error_becomes_ours():
    with pytest.raises(FinepruneError) as caught, engine_errors("layer.0: ", "; try again"):
        raise EngineError("has no rows")
    assert str(caught.value) == "layer.0: has no rows; try again"
    assert isinstance(caught.value.__cause__, EngineError)


def test_other_errors_pass():
    with pytest.raises(KeyError), engine_errors("layer.0: "):
        raise KeyError("x")
