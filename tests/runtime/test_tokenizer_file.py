import json

import pytest
from runtime.models import KINDS, PAIRS, TEXTS, make_tokenizer
from transformers import AutoTokenizer, SplinterTokenizer

from fineprune_runtime import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.tokenizer_file import tokenizer_errors
from fineprune_runtime.tokens import Tokens

ABSENT = object()
SAMPLES = [*TEXTS, "GOOD Bád film", "[SEP] good", "<s>good</s>", "漢good", "  very"]


@pytest.fixture
def written(tmp_path):
    """`written(kind, settings, file)`: a folder whose tokenizer's two JSON files are changed."""

    def write(kind, settings, file):
        make_tokenizer(kind).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        for name, changes in (("tokenizer_config.json", settings), ("tokenizer.json", file)):
            content = json.loads((tmp_path / name).read_text()) | changes
            kept = {key: value for key, value in content.items() if value is not ABSENT}
            (tmp_path / name).write_text(json.dumps(kept))
        return tmp_path

    return write


def bert_normalizer(lowercase, strip_accents=None):
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
        }
    }


OLD = dict.fromkeys(["added_tokens_decoder", "tokenizer_class", "cls_token", "sep_token"], ABSENT)


@pytest.mark.parametrize(("kind", "settings", "file", "texts", "tokens"), [
    # Both files as transformers saves them, then a setting that differs from the file.
    ("bert", {}, {}, "GOOD film", ["good", "film"]),
    ("bert", {"do_lower_case": False}, {}, "GOOD film", ["[UNK]", "film"]),
    ("bert", {"do_lower_case": True}, bert_normalizer(False), "GOOD film", ["good", "film"]),
    ("bert", {"do_lower_case": ABSENT}, bert_normalizer(False), "GOOD film", ["good", "film"]),
    ("bert", {"strip_accents": False}, {}, "bád", ["[UNK]"]),
    ("bert", {"strip_accents": True, "do_lower_case": False}, {}, "bád", ["bad"]),
    ("bert", {"strip_accents": ABSENT}, bert_normalizer(True, False), "bád", ["bad"]),
    ("bert", {"tokenize_chinese_chars": False}, {}, "漢good", ["[UNK]"]),
    ("bert", {}, {"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}}, "GOOD", ["good"]),
    ("bert", {}, {"post_processor": None}, "good", ["good"]),
    ("bert", {"unk_token": "bad"}, {}, "€", ["bad"]),
    # Folders as older programs left them.
    ("bert", OLD | {"do_lower_case": False}, {}, "GOOD film", ["[UNK]", "film"]),
    ("electra", OLD, {"added_tokens": []}, "[SEP] good", ["[SEP]", "good"]),
    ("distilbert", {"tokenizer_class": ABSENT, "do_lower_case": False}, {}, "GOOD", ["[UNK]"]),
    ("bert", {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}, {}, "GOOD", ["[UNK]"]),
    # Other names of the same classes.
    *[("roberta", {"tokenizer_class": f"{name}Tokenizer", "add_prefix_space": True}, {}, "goo", ["Ġg", "oo"])
      for name in ("Bart", "LED", "Longformer", "Mvp")],
    *[("bert", {"tokenizer_class": f"{name}Tokenizer", "do_lower_case": False}, {}, "GOOD", ["[UNK]"])
      for name in ("LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")],
    # Classes that take tokenizer.json as it is.
    ("bert", {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}, bert_normalizer(False),
     "GOOD", ["[UNK]"]),
    ("bert", {"tokenizer_class": "TokenizersBackend", "do_lower_case": False}, {}, "GOOD", ["good"]),
    ("roberta", {"add_prefix_space": True}, {}, "good", ["Ġg", "oo", "d"]),
    ("roberta", {"add_prefix_space": ABSENT}, {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space":
     True, "trim_offsets": True, "use_regex": True}}, "good", ["g", "oo", "d"]),
    ("xlm-roberta", {"add_prefix_space": False}, {}, "good", ["g", "o", "o", "d"]),
    ("xlm-roberta", {}, {"pre_tokenizer": {"type": "Whitespace"}}, "good bad", ["▁good", "▁bad"]),
    ("camembert", {"add_prefix_space": False}, {}, "good", ["g", "o", "o", "d"]),
    ("camembert", {}, {"pre_tokenizer": {"type": "Whitespace"}}, "good bad", ["▁good", "▁bad"]),
    ("deberta-v2", {}, {}, "good  bad", ["▁good", "▁bad"]),
    ("deberta-v2", {"do_lower_case": True}, {}, "GOOD", ["▁good"]),
    ("deberta-v2", {"split_by_punct": True}, {}, "good?", ["▁good", "▁?"]),
    ("deberta-v2", {"add_prefix_space": False}, {}, "good bad", ["▁good", "▁bad"]),
    ("deberta-v2", {}, {"normalizer": {"type": "Lowercase"}, "post_processor": None}, "Anna", ["▁Anna"]),
    ("modernbert", {}, {"normalizer": {"type": "Lowercase"}}, "GOO", ["g", "oo"]),
    ("modernbert", {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}, {}, "goo", ["g", "oo"]),
    ("modernbert", {"tokenizer_class": "BertTokenizerFast"}, {}, "goo", ["g", "oo"]),
    ("bert", {"tokenizer_class": "UnknownTokenizer", "do_lower_case": False}, {}, "GOOD", ["good"]),
    ("bert", {"extra_special_tokens": ["good"]}, {}, "goodbad", ["good", "bad"]),
])  # fmt: skip
def test_the_tokens_are_those_of_transformers(kind, settings, file, texts, tokens, written):
    folder = written(kind, settings, file)
    ours, theirs = Tokens(Folder(folder), 40), AutoTokenizer.from_pretrained(folder)
    assert ours.encode([texts], None, 40)[0].tokens[1:-1] == tokens
    for pairs in (None, [*PAIRS, *SAMPLES[len(PAIRS) :]]):
        expected = theirs(SAMPLES, pairs, truncation=True, max_length=20, return_offsets_mapping=True)
        found = ours.encode(SAMPLES, pairs, 20)
        assert [row.ids for row in found] == expected["input_ids"]
        assert [row.offsets for row in found] == expected["offset_mapping"]
        if ours.typed:
            assert [row.type_ids for row in found] == expected["token_type_ids"]


@pytest.mark.parametrize("lower", [True, False])
def test_a_class_without_a_family_wrote_its_settings_into_the_file(lower, written, tmp_path):
    """Of such a class transformers builds the tokenizer anew, and gets the one that it saved."""
    written("bert", {}, {})
    SplinterTokenizer(vocab=make_tokenizer("bert").vocab, do_lower_case=lower).save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs) is SplinterTokenizer
    for pairs in (None, [*PAIRS, *SAMPLES[len(PAIRS) :]]):
        found = Tokens(Folder(tmp_path), 40).encode(SAMPLES, pairs, 20)
        expected = theirs(SAMPLES, pairs, truncation=True, max_length=20)
        assert [row.ids for row in found] == expected["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_keep_their_ids(kind, written, tmp_path):
    tokenizer = make_tokenizer(kind)
    tokenizer.add_tokens(["zz", "Fil"])
    written(kind, {}, {})
    tokenizer.save_pretrained(tmp_path)
    (row,) = Tokens(Folder(tmp_path), 40).encode(["zz Fil good"], None, 40)
    assert row.ids == AutoTokenizer.from_pretrained(tmp_path)("zz Fil good")["input_ids"]


UNIGRAM = {"type": "Unigram", "unk_id": None, "vocab": [["[CLS]", 0.0], ["[SEP]", 0.0], ["a", -1.0]]}
WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
AS_IT_IS = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": ABSENT} | dict.fromkeys(
    ["unk_token", "cls_token", "sep_token", "pad_token", "mask_token"], ABSENT
)


@pytest.mark.parametrize(("settings", "file", "message"), [
    ({}, {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "cannot be read"),
    ({}, {"model": {"type": "Nonsense"}}, "tokenizer.json: cannot be read, it is damaged"),
    (AS_IT_IS, {"model": WORDS, "added_tokens": []}, "cannot tokenize the texts, it is damaged"),
    (AS_IT_IS, {"model": UNIGRAM, "added_tokens": []}, "cannot tokenize the texts, it is damaged"),
    ({}, {"model": WORDS}, "has a WordPiece model, but tokenizer.json holds a WordLevel model; save"),
    ({"do_lower_case": "yes"}, {}, "tokenizer_config.json and tokenizer.json do not fit each other"),
    ({"do_lower_case": None}, {}, "do not fit each other"),
    ({"cls_token": "a b"}, {}, "do not fit each other"),
    ({"added_tokens_decoder": {"x": {}}}, {}, "do not fit each other"),
    ({"added_tokens_decoder": {"5": 7}}, {}, "do not fit each other"),
    ({"extra_special_tokens": 7}, {}, "do not fit each other"),
    ({"extra_special_tokens": [["a"]]}, {}, "do not fit each other"),
])  # fmt: skip
def test_a_damaged_tokenizer(settings, file, message, written):
    folder = written("bert", settings, file)
    with pytest.raises(EngineError, match=message) as error:
        Tokens(Folder(folder), 40).encode(["x y"], None, 8)
    assert "\n" not in str(error.value)


def test_a_panic_becomes_an_error_and_an_interrupt_does_not():
    class PanicError(BaseException):
        """As pyo3 raises it."""

    with pytest.raises(EngineError, match=r"^cannot \(called Option on None\)$"), tokenizer_errors("cannot"):
        raise PanicError("called Option\n  on None")
    with pytest.raises(EngineError, match=r"^cannot \(PanicError\)$"), tokenizer_errors("cannot"):
        raise PanicError
    with pytest.raises(KeyboardInterrupt), tokenizer_errors("cannot"):
        raise KeyboardInterrupt
