import json

import numpy as np
import pytest
from runtime.models import KINDS, PAIRS, TEXTS, make_tokenizer
from transformers import AutoTokenizer

from fineprune_runtime import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.tokens import Tokens


@pytest.fixture
def opened(tmp_path):
    """`opened(kind, **settings)`: a folder with a tokenizer; settings of tokenizer_config.json replaced."""

    def make(kind="bert", positions=40, **settings):
        make_tokenizer(kind).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        file = tmp_path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return Tokens(Folder(tmp_path), positions)

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_those_of_transformers(kind, side, opened, tmp_path):
    tokens = opened(kind, truncation_side=side)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for texts, pairs in ((TEXTS, None), (TEXTS, PAIRS)):
        expected = theirs(texts, pairs, truncation=True, max_length=20)
        found = tokens.encode(texts, pairs, 20)
        assert [row.ids for row in found] == expected["input_ids"]
        assert tokens.typed == ("token_type_ids" in expected)
        if tokens.typed:
            assert [row.type_ids for row in found] == expected["token_type_ids"]
    whole = theirs(TEXTS, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert tokens.offsets(TEXTS) == whole
    assert tokens.special(False) == theirs.num_special_tokens_to_add(pair=False)
    assert tokens.special(True) == theirs.num_special_tokens_to_add(pair=True)
    assert tokens.anchors[-1] == theirs.cls_token_id


def test_a_text_in_pieces(opened):
    (encoding,) = opened().encode(["good bad film very"], None, 4)
    assert [row.tokens for row in (encoding, *encoding.overflowing)] == [
        ["[CLS]", "good", "bad", "[SEP]"],
        ["[CLS]", "film", "very", "[SEP]"],
    ]


def test_padding_and_truncation_in_the_file_do_not_count(opened, tmp_path):
    opened()
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                          "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokens = Tokens(Folder(tmp_path), 40)
    assert len(tokens.encode(["good " * 9], None, 8)[0]) == 8
    assert len(tokens.encode(["good"], None, 8)[0]) == 3
    assert len(tokens.offsets(["good " * 9])[0]) == 9


@pytest.mark.parametrize(("settings", "limit"), [
    ({}, 40),
    ({"model_max_length": 16}, 16),
    ({"model_max_length": 512}, 40),
    ({"model_max_length": 1e30}, 40),
    ({"model_max_length": None}, 40),
    ({"model_max_length": 0}, 40),
])  # fmt: skip
def test_the_limit(settings, limit, opened):
    assert opened(**settings).limit == limit


def test_the_length_of_a_row(opened):
    tokens = opened()
    assert tokens.length(None, 128, False) == 40
    assert tokens.length(None, 16, True) == 16
    assert tokens.length(3, 16, False) == 3
    assert tokens.length(40, 16, True) == 40
    assert tokens.length(np.int64(40), 16, True) == 40
    for asked, pairs, least in (
        (41, False, 3),
        (2, False, 3),
        (3, True, 4),
        (True, False, 3),
        ("9", False, 3),
    ):
        with pytest.raises(
            EngineError, match=f"max_length is {asked!r}; this model takes {least} to 40 tokens"
        ):
            tokens.length(asked, 16, pairs)


@pytest.mark.parametrize(("kind", "settings", "typed"), [
    ("bert", {}, True),
    ("bert", {"tokenizer_class": None}, True),
    ("bert", {"tokenizer_class": "BertTokenizerFast"}, True),
    ("bert", {"tokenizer_class": "PreTrainedTokenizerFast"}, False),
    ("bert", {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["token_type_ids"]}, True),
    ("bert", {"model_input_names": ["input_ids", "attention_mask"]}, False),
    ("roberta", {"tokenizer_class": None}, False),
])  # fmt: skip
def test_who_gives_token_types(kind, settings, typed, opened):
    assert opened(kind, **settings).typed is typed


def test_special_tokens_in_a_text(opened):
    assert opened().encode(["[SEP]"], None, 8)[0].tokens == ["[CLS]", "[SEP]", "[SEP]"]
    assert opened(split_special_tokens=True).encode(["[SEP]"], None, 8)[0].tokens[1] == "[UNK]"


def test_where_a_text_begins_as_written_in_the_file(opened):
    assert opened().anchors == [2]
    assert opened(bos_token="a", cls_token={"content": "[SEP]"}).anchors == [5, 3]
    assert opened(cls_token=None).anchors == []
    assert opened(cls_token="unheard").anchors == [len(make_tokenizer("bert"))]  # transformers adds it too


def test_a_folder_without_a_tokenizer(opened, tmp_path):
    opened()
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokens(Folder(tmp_path), 40).limit == 40
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(EngineError, match=r"tokenizer.json: cannot be read, it is damaged"):
        Tokens(Folder(tmp_path), 40)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"has no tokenizer.json; save the model's fast tokenizer there"):
        Tokens(Folder(tmp_path), 40)
