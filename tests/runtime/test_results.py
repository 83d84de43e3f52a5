import pytest

from fineprune_runtime.errors import EngineError
from fineprune_runtime.results import check_texts


@pytest.mark.parametrize(
    ("texts", "pairs", "batch_size", "message"),
    [
        ("good", None, 1, "texts is one string 'good'; give a list of them"),
        (["good"], "bad", 1, "pairs is one string 'bad'; give a list"),
        (["good", None], None, 1, r"texts\[1\] is None, which is not text"),
        (["good"], [b"bad"], 1, r"pairs\[0\] is b'bad', which is not text"),
        (["good", "a\ud800"], None, 1, r"texts\[1\] 'a\\ud800' holds a lone surrogate at 1, which is not"),
        (["good"], ["\udcff"], 1, r"pairs\[0\] '\\udcff' holds a lone surrogate at 0, which is not text"),
        (["good"], ["a", "b"], 1, "1 texts but 2 pairs; give one pair text for each text"),
        (["good"], None, 0, "batch_size is 0, allowed: 1 or more"),
    ],
)
def test_what_cannot_be_answered(texts, pairs, batch_size, message):
    with pytest.raises(EngineError, match=message):
        check_texts(texts, pairs, batch_size)


def test_what_can():
    check_texts([], None, 1)
    check_texts(["a", ""], ["", "b"], 1)
