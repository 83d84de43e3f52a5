import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from fineprune_runtime.entities import are_entities, begun_words, chunks, entities, word_spans
from fineprune_runtime.results import Entity


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], []),
        (["O", "O"], []),
        (["B-PER", "I-PER", "O"], [("PER", 0, 1)]),
        (["B-PER", "B-PER"], [("PER", 0, 0), ("PER", 1, 1)]),
        (["B-PER", "I-LOC"], [("PER", 0, 0), ("LOC", 1, 1)]),
        (["O", "I-PER", "I-PER"], [("PER", 1, 2)]),
        (["B-PER", "E-PER", "I-PER"], [("PER", 0, 1), ("PER", 2, 2)]),
        (["S-PER", "E-PER"], [("PER", 0, 0), ("PER", 1, 1)]),
        (["B-A-B", "I-A-B"], [("A-B", 0, 1)]),
        (["B-"], [("_", 0, 0)]),
    ],
)
def test_entities_of_tags_by_hand(tags, expected):
    assert chunks(tags) == expected


TAG = st.one_of(
    st.just("O"),
    st.builds("{}-{}".format, st.sampled_from("BIES"), st.sampled_from(["A", "B", "A-B", "_", ""])),
)


@settings(max_examples=500, deadline=None)
@given(tags=st.lists(TAG, max_size=12))
@example(tags=["B-_", "I-"])
def test_entities_of_tags_are_those_of_seqeval(tags):
    assert chunks(tags) == get_entities(tags)


def test_which_tags_are_of_entities():
    assert are_entities(["O", "B-PER", "I-PER", "E-PER", "S-PER"])
    assert not are_entities(["O", "NOUN"])
    assert not are_entities(["o"])


def test_words_stand_between_white_space():
    assert word_spans(" Anna\t went\n") == [(1, 5), (7, 11)]
    assert word_spans(" \n") == []


def test_the_words_that_tokens_begin():
    # "Anna went" in pieces: [CLS] An ##na [SEP], then [CLS] " went" [SEP]: a space is part of the token.
    rows = [[(0, 0), (0, 2), (2, 4), (0, 0)], [(0, 0), (4, 9), (0, 0)]]
    texts, starts = ["Anna went", "x"], [[0, 5], [0]]
    places = begun_words(texts, starts, [0, 0, 1], [*rows, [(0, 0), (0, 1), (0, 0)]])
    assert places == [(0, [None, 0, None, None]), (0, [None, 1, None]), (1, [None, 0, None])]


def test_rows_that_were_truncated_on_the_left_come_last_to_first():
    """The row that comes first begins in the middle of the second word, which the other one begins."""
    rows = [[(0, 0), (4, 6), (7, 8)], [(0, 0), (0, 1), (2, 4)]]
    assert begun_words(["a bbcc d"], [[0, 2, 7]], [0, 0], rows) == [
        (0, [None, None, 2]),
        (0, [None, 0, 1]),
    ]


def test_an_entity_has_its_characters_and_the_mean_of_its_words():
    text = "Anna Smith went"
    tags = {0: ("B-PER", 0.5), 1: ("I-PER", 1.0), 2: ("O", 0.9)}
    spans = word_spans(text)
    assert list(entities(text, spans, tags, plain=False)) == [Entity("PER", "Anna Smith", 0, 10, 0.75)]


def test_a_word_without_a_token_is_outside():
    text = "Anna \u200b Smith"
    tags = {0: ("B-PER", 0.5), 2: ("I-PER", 1.0)}
    found = list(entities(text, word_spans(text), tags, plain=False))
    assert [(entity.text, entity.score) for entity in found] == [("Anna", 0.5), ("Smith", 1.0)]


def test_where_tags_are_not_of_entities_each_word_is_one():
    found = list(entities("a cat", [(0, 1), (2, 5)], {1: ("NOUN", 0.5), 0: ("DET", 1.0)}, plain=True))
    assert found == [Entity("DET", "a", 0, 1, 1.0), Entity("NOUN", "cat", 2, 5, 0.5)]
