from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.errors import FinepruneError
from fineprune.pruning.schedule import Schedule

# T = 20, t_i = 2, t_f = 6: the pruning takes 12 steps, from step 2 to step 14.
TWENTY = Schedule(total=20, warmup=2, cooldown=6)


@pytest.mark.parametrize(
    ("step", "density"),
    [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),  # x = 0
        (5, 0.4796875),  # x = 1/4: 0.1 + 0.9 * (3/4)^3 = 0.1 + 0.9 * 0.421875
        (8, 0.2125),  # x = 1/2: 0.1 + 0.9 / 8
        (11, 0.1140625),  # x = 3/4: 0.1 + 0.9 / 64
        (13, 0.1 + 0.9 / 1728),  # x = 11/12: 1 - x = 1/12, cubed 1/1728
        (14, 0.1),
        (19, 0.1),
        (20, 0.1),
        (1000, 0.1),
    ],
)
def test_eq_5(step, density):
    assert TWENTY.density(step, final=0.1) == pytest.approx(density, rel=1e-12)


def test_the_ends_are_exact():
    assert TWENTY.density(2, final=0.03) == 1.0
    assert TWENTY.density(14, final=0.03) == 0.03
    assert (TWENTY.ramp(2), TWENTY.ramp(14)) == (0.0, 1.0)


def test_ramp_and_initial():
    assert TWENTY.ramp(8) == 0.875  # 1 - (1/2)^3
    # v_i = 0.6: 0.2 + (0.6 - 0.2) / 8
    assert TWENTY.density(8, final=0.2, initial=0.6) == pytest.approx(0.25)
    # v_i = 0.3: nothing is cut before t_i, then 30 % remain; 0.1 + 0.2 / 8 half-way
    assert [TWENTY.density(step, 0.1, 0.3) for step in (1, 2, 8)] == [1.0, 0.3, pytest.approx(0.125)]


def test_at_final_from_the_cooldown_on():
    assert [step for step in range(22) if TWENTY.at_final(step)] == list(range(14, 22))


def test_no_warmup_and_no_cooldown():
    steps = Schedule.plan(4, 0, 0)
    # x = 0, 1/4, 1/2, 3/4, then final: 1 - x cubed = 1, 27/64, 1/8, 1/64
    assert [steps.ramp(step) for step in range(5)] == [0.0, 37 / 64, 7 / 8, 63 / 64, 1.0]


@pytest.mark.parametrize(
    ("total", "warmup", "cooldown", "expected"),
    [
        (100, 0.1, 0.3, (100, 10, 30)),
        (100, 10, 30, (100, 10, 30)),
        (100, 0.0, 0.25, (100, 0, 25)),
        (100, 1, 0.5, (100, 1, 50)),  # the int 1 is a step, no share
        (7, 0.1, 0.3, (7, 1, 2)),  # 0.7 and 2.1 rounded
        (1, 0.1, 0.3, (1, 0, 0)),
    ],
)
def test_shares_and_steps(total, warmup, cooldown, expected):
    assert Schedule.plan(total, warmup, cooldown) == expected


@pytest.mark.parametrize(
    ("total", "warmup", "cooldown", "needed"),
    [
        (10, 5, 5, 11),
        (3, 100, 20, 121),
        # 50 steps of warm-up and half the run: half must be over 50; round(0.5 * 101) = 50 (to even)
        # leaves 1 step, while at 100 steps 50 + 50 leave none
        (60, 50, 0.5, 101),
        (2, 2, 0, 3),
    ],
)
def test_a_schedule_that_cannot_finish_names_the_steps_it_needs(total, warmup, cooldown, needed):
    with pytest.raises(FinepruneError, match=rf"total_steps={total}: .* at least {needed} steps"):
        Schedule.plan(total, warmup, cooldown)
    with pytest.raises(FinepruneError, match=rf"at least {needed} steps"):
        Schedule.plan(needed - 1, warmup, cooldown)
    Schedule.plan(needed, warmup, cooldown)


@pytest.mark.parametrize("total", [0, -5, 2.0, True, None, "10"])
def test_total_steps_must_be_a_positive_whole_number(total):
    with pytest.raises(FinepruneError, match="total_steps"):
        Schedule.plan(total, 0.1, 0.3)


@settings(deadline=None, max_examples=50)
@given(
    total=st.integers(1, 300),
    warmup=st.floats(0, 0.49),
    cooldown=st.floats(0, 0.49),
    final=st.floats(0.001, 1),
)
def test_density_falls_from_one_to_the_final(total, warmup, cooldown, final):
    try:
        steps = Schedule.plan(total, warmup, cooldown)
    except FinepruneError:
        assert round(warmup * total) + round(cooldown * total) >= total
        return
    curve = [steps.density(step, final) for step in range(total + 1)]
    assert curve[0] == 1.0
    assert curve[-1] == pytest.approx(final)
    assert all(later <= earlier for earlier, later in pairwise(curve))
    assert all(value == 1.0 for value in curve[: steps.warmup + 1])
    assert all(value == final for value in curve[total - steps.cooldown :])
