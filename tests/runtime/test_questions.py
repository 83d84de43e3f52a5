import json
import logging

import numpy as np
import pytest
from runtime.models import CONTEXTS, KINDS, QUESTIONS, make_tokenizer
from transformers import AutoTokenizer

from fineprune.errors import FinepruneError
from fineprune.tasks.questions.context_windows import make_windows
from fineprune.tasks.questions.squad import Questions
from fineprune_runtime import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.questions import read_windows
from fineprune_runtime.tokens import Tokens


@pytest.fixture
def opened(tmp_path):
    """`opened(kind)`: an architecture's tokenizer, from its file, and the same for transformers."""

    def make(kind="bert", **settings):
        make_tokenizer(kind).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        file = tmp_path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return Tokens(Folder(tmp_path), 512), AutoTokenizer.from_pretrained(tmp_path)

    return make


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("length", "stride"), [(20, None), (38, 3), (200, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_fineprune(kind, length, stride, side, opened):
    tokens, theirs = opened(kind, padding_side=side)
    names = [str(index) for index in range(len(QUESTIONS))]
    expected = make_windows(Questions(names, QUESTIONS, CONTEXTS, [[]] * 4), theirs, length, stride)
    found = read_windows(QUESTIONS, CONTEXTS, tokens, length, stride)
    assert [row.ids for row in found.encodings] == expected.rows()["input_ids"][:]
    assert np.array_equal(found.lengths(), expected.lengths())
    for name in ("question", "cls"):
        assert np.array_equal(found.column(name), expected.column(name))
    for name in ("starts", "ends"):
        assert np.array_equal(found.tokens(name), expected.tokens(name))


def test_a_question_that_was_cut_is_told(opened, caplog):
    tokens, _ = opened()
    with caplog.at_level(logging.WARNING, "fineprune_runtime"):
        read_windows(["good " * 30, "good"], ["bad", "bad"], tokens, 20, None)
    assert "1 questions are longer than 8 tokens and were cut" in caplog.text


@pytest.mark.parametrize("length", range(5, 12))
def test_short_windows_have_an_answer_or_a_message(length, opened):
    tokens, theirs = opened()
    longest = max(length - 3 - 1, 0)
    for stride in (None, *range(longest + 1)):
        asked = Questions(["0"], ["good " * 9], ["bad film " * 9], [[]])
        try:
            found = read_windows(asked.questions, asked.contexts, tokens, length, stride)
        except EngineError as error:
            assert "too long for windows of max_length" in str(error)  # noqa: PT017
            with pytest.raises(FinepruneError, match="or a greater max_length"):
                make_windows(asked, theirs, length, stride)
        else:
            expected = make_windows(asked, theirs, length, stride)
            assert [row.ids for row in found.encodings] == expected.rows()["input_ids"][:]


def test_a_stride_that_is_too_long(opened):
    tokens, _ = opened()
    message = "stride=12: too long for windows of max_length=20 tokens; allowed: 0 to 10, or a greater"
    with pytest.raises(EngineError, match=message):
        read_windows(["good"], ["bad"], tokens, 20, 12)
