"""A tokenizer gives no id and no type that lies beyond the model's tables."""

import pytest
from support import call, tiny_bert
from transformers import BertTokenizer

from fineprune import FinepruneError
from fineprune.checkpoint.loading import open_model
from fineprune.checkpoint.tokenizer_fit import check_tokenizer


@pytest.fixture
def words():
    """30 tokens, as many as the table of `tiny_bert` has rows."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab={word: index for index, word in enumerate([*special, *map(str, range(25))])})


def test_a_token_beyond_the_table(words):
    check_tokenizer(tiny_bert(), words, "m")
    check_tokenizer(tiny_bert(vocab_size=64), words, "m")  # padded to a round size
    words.add_tokens(["new"])
    with pytest.raises(FinepruneError, match=r"^m: .* 'new' has the id 30, .* ends at 29; .*resize"):
        check_tokenizer(tiny_bert(), words, "m")


@pytest.mark.parametrize(
    ("types", "head", "pairs", "fits"),
    [
        (2, "ForQuestionAnswering", None, True),
        (1, "ForQuestionAnswering", None, False),
        (1, "ForSequenceClassification", None, True),
        (1, "ForSequenceClassification", False, True),
        (1, "ForSequenceClassification", True, False),
    ],
)
def test_a_type_beyond_the_table(types, head, pairs, fits, words):
    model = tiny_bert(head, type_vocab_size=types)
    if pairs is not None:
        model.config.fineprune_text_pairs = pairs
    if fits:
        check_tokenizer(model, words, "m")
    else:
        with pytest.raises(FinepruneError, match=r"second text of a pair the type 1, .* ends at 0; save"):
            check_tokenizer(model, words, "m")


def test_a_length_that_is_no_number(words):
    words.model_max_length = "x"
    with pytest.raises(FinepruneError, match=r"model_max_length of tokenizer_config\.json is 'x'"):
        check_tokenizer(tiny_bert(), words, "m")


def test_a_vocabulary_that_is_missing(words, tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    assert open_model(tmp_path).tokenizer("7")["input_ids"] == [2, 12, 3]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FinepruneError, match=r"no vocabulary \(tokenizer\.json or vocab\.txt is missing\)"):
        open_model(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(FinepruneError, match=r"no vocabulary"):
        open_model(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(words.get_vocab()))
    assert open_model(tmp_path).tokenizer("7")["input_ids"]


def test_every_command_says_so_in_one_line(words, tmp_path, capsys):
    words.add_tokens(["new"])
    tiny_bert().save_pretrained(tmp_path / "m")
    words.save_pretrained(tmp_path / "m")
    (tmp_path / "d.tsv").write_text("text\tlabel\n" + "1 new\t1\n2\t0\n" * 4)
    recipe = "model: {0}\ntask: {{train: {1}, validation: {1}}}\ntraining: {{steps: 1, max_length: 8}}\n"
    (tmp_path / "r.yaml").write_text(recipe.format(tmp_path / "m", tmp_path / "d.tsv"))
    capsys.readouterr()
    for command in (
        ("predict", tmp_path / "m", "1 new"),
        ("compact", tmp_path / "m", tmp_path / "out"),
        ("run", tmp_path / "r.yaml", "--out", tmp_path / "out"),
    ):
        assert call(*command) == 2
        told = capsys.readouterr()
        assert (told.out, len(told.err.strip().splitlines())) == ("", 1)
        assert "the tokenizer does not fit the model" in told.err
    assert not (tmp_path / "out").exists()
