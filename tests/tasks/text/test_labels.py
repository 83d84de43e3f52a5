import math
import re

import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.text.labels import (
    check_labels,
    from_class_label,
    infer_labels,
    label_ids,
    label_values,
    number,
)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (1, 1),
        (1.0, 1),
        ("1", 1),
        (" 1.0 ", 1),
        ("-3", -3),
        ("+.5", 0.5),
        ("2.50", 2.5),
        ("09.5", 9.5),
        ("05", None),  # a code
        ("1e2", 100),
        (0.1, 0.1),
        ("", None),
        ("one", None),
        ("1_000", None),
        ("0x10", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("٣", None),
        (float("nan"), None),
        (math.inf, None),
        (True, None),
        (None, None),
        ([1], None),
        ("9" * 5000, None),
        (10**400, None),  # no float holds it
    ],
)
def test_what_is_a_number(cell, expected):
    assert number(cell) == expected
    assert type(number(cell)) is type(expected)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["0", "1", "0"], ("0", "1")),
        (["10", "9", "2"], ("2", "9", "10")),
        ([3, 1, 1.0, "1"], ("1", "3")),
        (["-1", "1"], ("-1", "1")),
        (["1.0", "0.0"], ("0", "1")),
        (["pos", "neg"], ("neg", "pos")),
        (["1", "pos"], ("1", "pos")),
        (["nan", "1"], ("1", "nan")),
        ([True, False], ("false", "true")),
        (["NA", "null"], ("NA", "null")),
        (["007", "7", "10"], ("007", "10", "7")),  # codes, of which none is another
        (["0", "00"], ("0", "00")),
        (["2.5", "1"], None),
        (["09.5", "10.0"], None),
        ([0.25, 1], None),
        (["only"], ("only",)),
    ],
)
def test_what_the_training_labels_imply(cells, names):
    assert infer_labels(cells, "f") == names


@pytest.mark.parametrize("cells", [("1e3", "1000"), ("1", "+1"), ("1.10", "1.1", "x"), ("07.0", "7")])
def test_spellings_of_one_number_are_no_class(cells):
    numbers = [cell for cell in cells if number(cell) is not None]
    message = re.escape(f"f: the labels {numbers[0]!r} and {numbers[1]!r} are one number; write them alike")
    with pytest.raises(FinepruneError, match=message):
        infer_labels(cells, "f")


def test_spellings_of_whole_numbers_by_programs_are_one_class():
    cells = ["1", "1.0", " 1 ", 1, 1.0, "-2", "-2.00", "+3", "+3", "1e3", "0", "-0.0"]
    assert infer_labels(cells, "f") == ("-2", "0", "1", "3", "1000")
    assert infer_labels(["1.10", "1.1"], "f") is None  # values


def test_a_label_for_every_row_is_not_a_class():
    with pytest.raises(
        FinepruneError, match=r"f: each of the 20 rows has a label of its own, such as 'row 0'; .*`label`"
    ):
        infer_labels([f"row {index}" for index in range(20)], "f")
    assert len(infer_labels([f"row {index}" for index in range(19)], "f") or ()) == 19
    assert infer_labels([index + 0.5 for index in range(20)], "f") is None  # values may all differ


@pytest.mark.parametrize("cell", [None, "", float("nan")])
def test_a_missing_label_names_the_row(cell):
    with pytest.raises(FinepruneError, match=r"f, row 2: has no label"):
        check_labels(["a", cell], "f")


def test_a_label_of_another_type():
    with pytest.raises(FinepruneError, match=r"f, row 1: label \['a'\] is neither text nor a number"):
        check_labels([["a"]], "f")


def test_ids_by_name_and_by_position():
    assert label_ids(["pos", "neg", 1, "0", 1.0, "1.0"], ["neg", "pos"], "f") == [1, 0, 1, 0, 1, 1]
    assert label_ids([True, False], ["false", "true"], "f") == [1, 0]


def test_integer_names_are_names_never_positions():
    assert label_ids(["1", 5, "5.0"], ["1", "5"], "f") == [0, 1, 1]
    assert label_ids([0, 1], ["1", "0"], "f") == [1, 0]
    with pytest.raises(FinepruneError, match=r"row 1: label 0 is not known; allowed are '1', '5'$"):
        label_ids([0], ["1", "5"], "f")


@pytest.mark.parametrize("cell", ["maybe", "2", 2, -1, "Pos", "pos ", True, 0.5])
def test_an_unknown_label_names_file_row_value_and_the_allowed(cell):
    with pytest.raises(FinepruneError) as error:
        label_ids(["pos", "pos", cell], ["neg", "pos"], "dev.tsv")
    assert str(error.value) == (
        f"dev.tsv, row 3: label {cell!r} is not known; allowed are 'neg', 'pos', or a number from 0 to 1"
    )


def test_equal_cells_of_different_types_are_not_confused():
    # 1 == 1.0 == True in Python; only the first two are the number 1.
    with pytest.raises(FinepruneError, match=r"row 3: label True is not known"):
        label_ids([1, 1.0, True], ["neg", "pos"], "f")


def test_values():
    assert label_values(["2.5", 1, "-1e-1", "-05", "00", "0.5"], "f") == [2.5, 1.0, -0.1, -5.0, 0.0, 0.5]
    assert all(type(value) is float for value in label_values([1, 2.0], "f"))
    with pytest.raises(FinepruneError, match=r"f, row 2: label 'high' is not a number, as regression needs"):
        label_values([1, "high"], "f")


def test_hub_class_labels_become_names_or_stay_positions():
    assert from_class_label([1, 0], ["no", "yes"], None, "f") == ["yes", "no"]
    assert from_class_label([1, 0], ["no", "yes"], ["yes", "no"], "f") == ["yes", "no"]
    assert from_class_label([1, 0], ["0", "1"], ["neg", "pos"], "f") == [1, 0]
    for hidden in (-1, None):
        with pytest.raises(FinepruneError, match=r"f, row 1: has no label .*hidden"):
            from_class_label([hidden], ["no", "yes"], None, "f")


def test_codes_with_leading_zeros_are_names_and_no_positions():
    assert label_ids(["02", "01"], ("01", "02"), "f") == [1, 0]
    with pytest.raises(FinepruneError, match=r"row 1: label '1' is not known; allowed are '01', '02'$"):
        label_ids(["1"], ("01", "02"), "f")
