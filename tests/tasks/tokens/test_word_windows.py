from fineprune.tasks.tokens.word_windows import join, tokenize_words


def test_byte_level_tokenizers_see_the_space_before_a_word():
    from transformers import RobertaTokenizer

    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", "a", "b", "c", "Ġa"]
    roberta = RobertaTokenizer(vocab={s: i for i, s in enumerate(symbols)}, merges=[("Ġ", "a")])
    text, starts = join(["a", "bc", "a"])
    columns, places = tokenize_words([text], [starts], roberta, 16)
    assert columns["input_ids"] == [[0, 6, 5, 7, 8, 9, 2]]  # a, Ġ, b, c, Ġa
    assert places == [(0, [None, 0, None, 1, None, 2, None])]
