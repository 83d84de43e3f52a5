import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.tokens import tags
from fineprune.tasks.tokens.files import Sentence
from fineprune.tasks.tokens.tags import infer_tags, tag_ids


def sentences(*cells: list) -> list[Sentence]:
    """Sentences with these tag cells, of the words a, b, …, in a table."""
    return [Sentence(list("abcd"[: len(row)]), row, f"t, row {at}") for at, row in enumerate(cells, start=1)]


def test_text_is_sorted_by_the_alphabet_and_numbers_by_value():
    assert infer_tags(sentences(["O", "B-X"], ["O", "B-A"])) == ("B-A", "B-X", "O")
    assert infer_tags(sentences([10, 9], [2])) == ("2", "9", "10")


@pytest.mark.parametrize(
    ("cells", "known", "named", "expected"),
    [
        (["B", "A"], ("A", "B"), None, [1, 0]),
        ([1, 0], ("A", "B"), None, [1, 0]),  # positions
        ([5, 7], ("5", "7"), None, [0, 1]),  # tags that are numbers
        (["5", 7], ("5", "7"), None, [0, 1]),
        ([0, 1], ("B", "A"), ("A", "B"), [1, 0]),  # numbers of the hub, in the order of the model
        ([0, 1], ("X", "Y"), ("A", "B"), [0, 1]),  # names that the model does not know: positions
    ],
)
def test_a_cell_is_a_tag_or_its_number(cells, known, named, expected):
    assert tag_ids(sentences(cells), known, named) == [expected]


@pytest.mark.parametrize("cell", ["", -1, -100, None, True, 1.0])
def test_a_word_without_a_tag(cell):
    with pytest.raises(FinepruneError, match=r"t, row 1: 'b' has no tag \("):
        infer_tags(sentences(["O", cell]))
    with pytest.raises(FinepruneError, match=r"t, row 1: 'b' has no tag \("):
        tag_ids(sentences(["O", cell]), ("O", "B-X"))


@pytest.mark.parametrize(("cell", "known"), [("C", ("A", "B")), (2, ("A", "B")), (0, ("1", "2"))])
def test_a_tag_that_is_not_known(cell, known):
    with pytest.raises(
        FinepruneError, match=rf"t, row 1: tag {cell!r} of 'a' is not known; known are .*`labels`"
    ):
        tag_ids(sentences([cell]), known)


def test_numbers_beside_text():
    with pytest.raises(
        FinepruneError, match=r"some tags are numbers \(3\), others text \('B'\); give `labels`"
    ):
        infer_tags(sentences(["B"], [3]))


def test_too_many_tags_are_another_column(monkeypatch):
    monkeypatch.setattr(tags, "MOST_TAGS", 2)
    assert infer_tags(sentences(["A", "B"])) == ("A", "B")
    with pytest.raises(
        FinepruneError, match="more than 2 different tags, such as 'A', 'B', 'C'; name the right"
    ):
        infer_tags(sentences(["A", "B"], ["C"]))
