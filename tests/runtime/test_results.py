import numpy as np
import pytest

from fineprune_runtime.errors import EngineError
from fineprune_runtime.results import read_texts


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
        (["good"], None, 0, "batch_size is 0, allowed: 1 or more, a whole number"),
        (["good"], None, "8", "batch_size is '8', allowed: 1 or more"),
        (["good"], None, 2.5, r"batch_size is 2\.5, allowed"),
        (["good"], None, None, "batch_size is None, allowed"),
        ({"good"}, None, 1, "texts is of the type set; give a list of strings"),
        ({"good": 1}, None, 1, "texts is of the type dict; give a list"),
        (b"good", None, 1, "texts is of the type bytes; give a list"),
        (None, None, 1, "texts is of the type NoneType; give a list"),
        (["good"], 5, 1, "pairs is of the type int; give a list"),
        (np.array([["good"]]), None, 1, r"texts is a table \(ndarray\); give one column of it, the strings"),
        (np.array("good"), None, 1, "texts is of the type ndarray; give a list"),
        (iter(["good"]), iter("ab"), 1, "1 texts but 2 pairs"),
    ],
)
def test_what_cannot_be_answered(texts, pairs, batch_size, message):
    with pytest.raises(EngineError, match=message):
        read_texts(texts, pairs, batch_size)


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array, lambda texts: (text for text in texts)])
def test_what_can(kind):
    assert read_texts(kind([]), None, 1) == ([], None)
    assert read_texts(kind(["a", ""]), kind(["", "b"]), np.int64(1)) == (["a", ""], ["", "b"])
