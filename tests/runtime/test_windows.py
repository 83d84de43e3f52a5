import numpy as np
import pytest

from fineprune_runtime.windows import anchors, question_limit, shortened


@pytest.mark.parametrize(
    ("room", "max_length", "stride", "expected"),
    [
        (381, 384, None, (189, 128, 222)),  # 381 - 128 - 64 is less than half of 381
        (17, 20, None, (8, 6, 10)),  # a third of 20; half of 17
        (4, 7, 1, (2, 1, 2)),
        (4, 7, 3, (0, 3, 2)),  # 4 - 3 - 1 leaves nothing
        (125, 128, 128, (0, 128, 73)),
        (1, 4, None, (0, 1, 0)),
        (2, 5, None, (0, 1, 0)),  # a question of 1 would leave the context 1, all of it stride
        (2, 5, 0, (1, 0, 0)),
        (3, 6, None, (0, 2, 1)),
        (3, 6, 1, (1, 1, 1)),
    ],
)
def test_the_room_of_a_question(room, max_length, stride, expected):
    assert question_limit(room, max_length, stride) == expected


def test_a_text_is_cut_to_its_first_tokens():
    def letters(texts):
        return [[(at, at + 1) for at in range(len(text))] for text in texts]

    assert shortened(["abcd", "ab", ""], letters, 3) == (["abc", "ab", ""], 1)


def test_a_cut_that_makes_more_tokens_goes_on():
    def tokens(texts):  # a whole word is one token, a cut one a token for each letter
        rows = []
        for text in texts:
            words = text.split(" ")
            whole = [(0, 4), (5, 9)] if words == ["good", "film"] else None
            rows.append(whole or [(at, at + 1) for at in range(len(text)) if text[at] != " "])
        return rows

    assert shortened(["good film"], tokens, 1) == ([""], 1)


def test_where_no_answer_is():
    # Windows of 3 and 4 tokens; 7 begins a text, 9 is [CLS]; a 9 that is of a text does not count.
    ids = np.array([1, 7, 9, 9, 5, 9, 9])
    special = np.array([True, True, False, False, True, True, True])
    ends = np.array([3, 7])
    assert anchors(ids, special, ends, [7]).tolist() == [1, 0]
    assert anchors(ids, special, ends, [7, 9]).tolist() == [1, 2]
    assert anchors(ids, special, ends, []).tolist() == [0, 0]
