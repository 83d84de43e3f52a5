"""The model to take: under each limit, against the dense ones, and when nothing fits."""

import math

import pytest

from fineprune import FinepruneError
from fineprune.study.frontier.points import Model, Point, best_of
from fineprune.study.frontier.recommendation import Limits, recommend
from fineprune.study.grid import Cell
from fineprune.study.grouping import Group, Row
from fineprune.study.study_folder import RunFolder


def point(name, runtime, score, milliseconds, megabytes, wrong=False, constant=False):
    dense = name == "dense"
    cell = Cell("t", "dense" if dense else "movement", None if dense else 0.1, None, False, 0)
    results = {"metric": "accuracy", "score": score / 100, "constant": constant}
    run = RunFolder(name, cell, {}, results, (), {}, None)
    model = Model(name, Group(cell, [Row(cell, results)]), [run])
    return Point(model, runtime, score, None, milliseconds, megabytes, 50.0, 1.0, 1, wrong)


DENSE = point("dense", "torch", 90.0, 10.0, 40.0)
DENSE_INT8 = point("dense", "OpenVINO int8", 89.5, 4.0, 12.0)
SMALL = point("small", "engine int8", 89.2, 2.0, 6.0)
TINY = point("tiny", "engine int8", 85.0, 1.0, 3.0)
POINTS = [DENSE, DENSE_INT8, SMALL, TINY]


@pytest.mark.parametrize(
    ("limits", "taken", "rival"),
    [
        (Limits(), SMALL, DENSE_INT8),  # one point of 90 is allowed
        (Limits(within=5.0), TINY, DENSE_INT8),
        (Limits(within=0.6), DENSE_INT8, None),
        (Limits(max_ms=5.0), DENSE_INT8, SMALL),  # without --within the best score
        (Limits(max_mb=5.0), TINY, None),
    ],
)
def test_what_is_taken(limits, taken, rival):
    choice = recommend(POINTS, limits)
    assert (choice.point, choice.rival) == (taken, rival)


def test_a_score_at_the_limit_keeps_to_it():
    """64.01 - 1 > 63.01 in binary fractions."""
    points = [point("dense", "torch", 64.01, 10.0, 40.0), point("small", "engine int8", 63.01, 2.0, 6.0)]
    assert points[0].score - 1 > points[1].score
    assert recommend(points, Limits(within=1.0)).point == points[1]


def test_it_says_what_a_pruned_model_gains_and_how_to_copy_it():
    choice = recommend(POINTS, Limits())
    assert choice.lines() == [
        "within 1 point of the best dense score: take small in engine int8: "
        "accuracy 89.2 (-0.8 against dense), 2.00 ms a text, 6.0 MB, 50 MB of memory",
        "the best dense one: dense in OpenVINO int8: accuracy 89.5 (-0.5 against dense), "
        "4.00 ms a text, 12.0 MB, 50 MB of memory; 2.00 times its time",
    ]
    assert choice.commands[0] == "fineprune compact small small --values int8 --embeddings int8"


def test_it_says_that_a_dense_model_is_better():
    assert "a dense model is the better choice here" in recommend(POINTS, Limits(within=0.6)).lines()


def test_wrong_answers_are_never_taken_or_on_the_front():
    wrong = point("wrong", "engine float32", 99.0, 0.5, 1.0, wrong=True)
    assert recommend([*POINTS, wrong], Limits(max_ms=100.0)).point == DENSE
    assert best_of([*POINTS, wrong], "milliseconds") == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("points", "limits", "said"),
    [
        (POINTS, Limits(within=-1.0), "within is -1, expected 0 or more"),
        (POINTS, Limits(max_ms=0.0), "max-ms is 0, expected more than 0"),
        (POINTS, Limits(within=math.inf), "within is inf, expected 0 or more .* and a finite number"),
        (POINTS, Limits(max_ms=math.inf), "max-ms is inf, expected more than 0, and a finite number"),
        (POINTS, Limits(max_mb=math.nan), "max-mb is nan, expected more than 0, and a finite number"),
        (
            POINTS,
            Limits(within=1.0, max_ms=1.95),
            "nothing measured is within 1 point .* nearest is small in",
        ),
        ([SMALL, TINY], Limits(), "no dense run of this task, so the share"),
        ([], Limits(), "no model was measured"),
    ],
)
def test_refused(points, limits, said):
    with pytest.raises(FinepruneError, match=said):
        recommend(points, limits)


def test_without_a_dense_run_other_limits_work():
    assert recommend([SMALL, TINY], Limits(max_mb=4.0)).point == TINY


def test_models_that_learned_nothing_are_not_called_wrong():
    same = point("dense", "torch", 50.0, 10.0, 40.0, constant=True)
    with pytest.raises(FinepruneError, match="the same answer to every example: they learned nothing; more"):
        recommend([same, point("small", "engine float32", 50.0, 2.0, 6.0, wrong=True)], Limits())
    with pytest.raises(FinepruneError, match="no model was measured whose answers are right"):
        recommend([point("small", "engine float32", 50.0, 2.0, 6.0, wrong=True)], Limits())
