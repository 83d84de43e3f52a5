import math

import pytest

from fineprune.pruning.density_control import controlled_lambda, path


def test_the_path_follows_the_ramp():
    assert path(0.0, 2.0, -2.0) == 2.0
    assert path(0.25, 2.0, -2.0) == 1.0
    assert path(1.0, 2.0, -2.0) == -2.0


@pytest.mark.parametrize(
    ("threshold", "wanted", "ramp", "expected"),
    [
        (0.0, 0.0, 0.5, 0.005),  # on the path: 1e-5 * 1000 weights * 0.5
        (1.0, 1.0, 1.0, 0.01),
        (1.5, 0.5, 1.0, 0.0738906),  # 0.01 * e^2
        (0.5, 1.5, 1.0, 0.00135335),  # 0.01 / e^2
        (4.0, 0.0, 1.0, 29.80958),  # 0.01 * e^8: the bound
        (90.0, 0.0, 1.0, 29.80958),
        (-90.0, 0.0, 1.0, 3.3546e-6),  # 0.01 / e^8
        (3.0, 0.0, 0.0, 0.0),  # nothing before the ramp
        (math.inf, 0.0, 1.0, 0.0),
        (-math.inf, 0.0, 1.0, 0.0),
    ],
)
def test_lambda(threshold, wanted, ramp, expected):
    assert controlled_lambda(threshold, wanted, ramp, weights=1000) == pytest.approx(expected, rel=1e-4)


def test_lambda_grows_with_the_threshold_and_with_the_weights():
    values = [controlled_lambda(threshold, 0.0, 0.5, 100) for threshold in (-2.0, -0.5, 0.0, 0.5, 2.0)]
    assert values == sorted(values)
    assert len(set(values)) == 5
    assert controlled_lambda(0.5, 0.0, 0.5, 200) == pytest.approx(2 * values[3])
