"""Windows by hand, for three kinds of tokenizers, and what holds for any text."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.errors import FinepruneError
from fineprune.tasks.questions import context_windows
from fineprune.tasks.questions.context_windows import RightPadding, make_windows
from fineprune.tasks.questions.squad import Questions, Span, read_file

CONTEXT = "a b very film bad"


def asked(context=CONTEXT, answer=None, question="good", start=None):
    spans = [] if answer is None else [Span(answer, context.index(answer) if start is None else start)]
    return Questions(["q"], [question], [context], [spans])


def positions(windows):
    columns = (windows.column("start_positions"), windows.column("end_positions"))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def by_bytes(**values):
    """Every byte is a token, as in RoBERTa without merges, and [CLS] is where `single` says."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pair = values.pop("pair", "<s> $A </s> </s> $B </s>")
    special = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=special
    )
    names = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **values)


@pytest.fixture(scope="session")
def letters():
    """Words of a to e are tokens of a letter each, others are [UNK]."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde", *(f"##{letter}" for letter in "abcde")]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


# -- by hand ------------------------------------------------------------------------------------


def test_one_window(tokenizer):
    windows = make_windows(asked(answer="very film"), tokenizer, 16)
    (row,) = windows.rows()
    assert row == {
        "input_ids": [2, 5, 3, 9, 10, 8, 7, 6, 3],
        "attention_mask": [1] * 9,
        "token_type_ids": [0, 0, 0, 1, 1, 1, 1, 1, 1],
        "start_positions": 5,
        "end_positions": 6,
    }
    assert windows.tokens("starts").tolist() == [-1, -1, -1, 0, 2, 4, 9, 14, -1]
    assert windows.tokens("ends").tolist() == [-1, -1, -1, 1, 3, 8, 13, 17, -1]
    assert (windows.column("cls").tolist(), windows.column("question").tolist()) == ([0], [0])
    assert (windows.lengths().tolist(), len(windows), windows.cut, windows.lost) == ([9], 1, 0, 0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a", [(3, 3), (0, 0)]),
        ("b very", [(4, 5), (0, 0)]),  # of "b very" the second window has one word
        ("very", [(5, 5), (3, 3)]),
        ("very film", [(0, 0), (3, 4)]),
        ("bad", [(0, 0), (5, 5)]),
        ("ad", [(0, 0), (5, 5)]),  # the token around it
        (" film ", [(0, 0), (4, 4)]),  # spaces are of no token
        (None, [(0, 0), (0, 0)]),
    ],
)
def test_two_windows_that_share_a_word(tokenizer, answer, expected):
    # 7 tokens: [CLS] good [SEP], three words of the context, [SEP].
    windows = make_windows(asked(answer=answer), tokenizer, 7, stride=1)
    assert windows.rows()["input_ids"][:] == [[2, 5, 3, 9, 10, 8, 3], [2, 5, 3, 8, 7, 6, 3]]
    assert positions(windows) == expected
    assert windows.lost == 0


def test_an_answer_that_no_window_holds_is_counted(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, "fineprune"):
        windows = make_windows(asked(answer="b very film"), tokenizer, 7, stride=1)
    assert positions(windows) == [(0, 0), (0, 0)]
    assert windows.lost == 1
    assert "1 answers are in no window whole" in caplog.text


def test_the_first_of_several_answers_at_its_own_place(tokenizer):
    read = Questions(["q"], ["good"], ["a bad a"], [[Span("a", 6), Span("bad", 2)]])
    assert positions(make_windows(read, tokenizer, 16)) == [(5, 5)]


def test_windows_of_several_questions_across_chunks(tokenizer, monkeypatch):
    monkeypatch.setattr("fineprune.tasks.questions.context_windows._CHUNK", 2)
    one = asked(answer="bad")
    read = Questions(list("12345"), ["good"] * 5, [CONTEXT, "bad"] * 2 + [CONTEXT], one.answers * 5)
    read.answers[1] = read.answers[3] = [Span("bad", 0)]
    windows = make_windows(read, tokenizer, 7, stride=1)
    assert windows.column("question").tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    assert windows.lengths().tolist() == [7, 7, 5, 7, 7, 5, 7, 7]
    assert positions(windows) == [(0, 0), (5, 5), (3, 3)] * 2 + [(0, 0), (5, 5)]
    assert len(windows.tokens("starts")) == 6 * 7 + 2 * 5


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], [(0, 0)]),
        ([1, 1, 1, 1], [(0, 3), (3, 4)]),  # three at a time
        ([9, 1, 9, 1, 1], [(0, 2), (2, 4), (4, 5)]),  # or ten characters
        ([99, 99], [(0, 1), (1, 2)]),
    ],
)
def test_parts_of_few_questions_and_few_characters(monkeypatch, lengths, expected):
    monkeypatch.setattr(context_windows, "_CHUNK", 3)
    monkeypatch.setattr(context_windows, "_LETTERS", 10)
    parts = context_windows._parts(["x" * length for length in lengths])
    assert [(part.start, part.stop) for part in parts] == expected


def test_many_questions_are_shared_out_to_processes(tokenizer, monkeypatch):
    questions = Questions(list("123"), ["good"] * 3, [CONTEXT, "bad", "film"], [[], [Span("bad", 0)], []])
    alone = make_windows(questions, tokenizer, 7, stride=1)
    monkeypatch.setattr(context_windows, "_CHUNK", 1)
    monkeypatch.setattr(context_windows, "_MANY", 3)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    windows = make_windows(questions, tokenizer, 7, stride=1)
    assert windows.table.equals(alone.table)
    assert windows.table.num_rows == len(alone) == 4


def test_a_long_question_is_cut_and_counted(tokenizer, caplog):
    read = Questions(["1", "2"], ["good " * 40, "good"], [CONTEXT] * 2, [[], []])
    with caplog.at_level(logging.WARNING, "fineprune"):
        windows = make_windows(read, tokenizer, 11, stride=2)  # room for 8, half of it for the question
    assert windows.cut == 1
    assert "1 questions are longer than 4 tokens and were cut" in caplog.text
    rows = windows.rows()["input_ids"][:]
    assert rows[0] == [2, 5, 5, 5, 5, 3, 9, 10, 8, 7, 3]
    assert rows[-1] == [2, 5, 3, 9, 10, 8, 7, 6, 3]


def test_a_question_is_cut_between_characters():
    tokenizer = by_bytes()
    windows = make_windows(asked(question="€€€", context="abc"), tokenizer, 14, stride=0)  # room 10: 5 bytes
    ids = windows.rows()["input_ids"][0]
    assert tokenizer.decode(ids) == "<s>€</s></s>abc</s>"  # two of them would be 6 bytes
    assert windows.cut == 1


@pytest.mark.parametrize(
    ("max_length", "stride", "message"),
    [
        (7, 3, r"task.stride=3: too long for windows of training.max_length=7 tokens; allowed: 0 to 2, or a"),
        (128, 128, r"task.stride=128: .*; allowed: 0 to 73, or a greater max_length"),
        (4, None, r"task.stride=1: .*max_length=4 tokens; allowed: 0 to 0"),
    ],
)
def test_a_stride_that_leaves_no_room(tokenizer, max_length, stride, message):
    with pytest.raises(FinepruneError, match=message):
        make_windows(asked(), tokenizer, max_length, stride)


@pytest.mark.parametrize("max_length", [8, 16, 32, 128, 256, 384, 512])
def test_without_a_stride_every_length_works(tokenizer, max_length):
    windows = make_windows(asked(context="a b " * 2000, question="good " * 600), tokenizer, max_length)
    assert windows.lengths().max() <= max_length
    assert windows.lengths()[0] == max_length


def test_the_greatest_allowed_stride_works(tokenizer):
    assert len(make_windows(asked(context="a b " * 200), tokenizer, 128, stride=73)) > 5


def test_a_tokenizer_that_does_not_know_places(tokenizer):
    class Slow:
        is_fast, name_or_path = False, "some/model"

    with pytest.raises(FinepruneError, match=r"some/model: the tokenizer \(Slow\) does not know the places"):
        make_windows(asked(), Slow(), 16)


def test_inputs_like_those_of_roberta():
    tokenizer = by_bytes(model_input_names=["input_ids", "attention_mask"])
    windows = make_windows(asked("xé €", "é", "q"), tokenizer, 20)
    assert windows.rows().column_names == ["input_ids", "attention_mask", "start_positions", "end_positions"]
    # <s> q </s> </s> x é (2 bytes) space € (3 bytes) </s>
    assert windows.tokens("starts").tolist() == [-1, -1, -1, -1, 0, 1, 1, 2, 3, 3, 3, -1]
    assert windows.tokens("ends").tolist() == [-1, -1, -1, -1, 1, 2, 2, 3, 4, 4, 4, -1]
    assert positions(windows) == [(5, 6)]


def test_inputs_like_those_of_xlnet():
    # Padded on the left: the context first, and [CLS] last, as a literal <s> in the text is not.
    tokenizer = by_bytes(pair="$A </s> $B </s> <s>", padding_side="left")
    windows = make_windows(asked("x<s>y", "y", "q"), tokenizer, 20)
    assert tokenizer.decode(windows.rows()["input_ids"][0]) == "x<s>y</s>q</s><s>"
    assert windows.column("cls").tolist() == [6]
    assert windows.tokens("starts").tolist() == [0, 1, 4, -1, -1, -1, -1]
    assert positions(windows) == [(2, 2)]
    assert positions(make_windows(asked("xy", None, "q"), tokenizer, 20)) == [(5, 5)]


def test_without_a_cls_the_first_token_stands_for_no_answer():
    windows = make_windows(asked("xy", None, "q"), by_bytes(pair="$A </s> $B"), 20)
    assert windows.column("cls").tolist() == [0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_on_the_right(side):
    tokenizer = by_bytes(padding_side=side)
    read = Questions(["1", "2"], ["q", "q"], ["xyz", "x"], [[Span("z", 2)], [Span("x", 0)]])
    windows = make_windows(read, tokenizer, 20)
    batch = RightPadding(tokenizer)(list(windows.rows()))
    ids = batch["input_ids"]
    assert ids[1, -2:].tolist() == [0, 0]
    assert batch["attention_mask"].sum(1).tolist() == windows.lengths().tolist()
    at = zip(ids, batch["start_positions"], strict=True)
    assert [tokenizer.decode(row[start]) for row, start in at] == ["z", "x"]


def test_a_context_of_100_000_characters(letters):
    context = "abcde " * 17_000
    windows = make_windows(asked(context, "cde", "abc", start=6 * 15_000 + 2), letters, 384)
    held = [(start, end) for start, end in positions(windows) if start]
    assert len(windows) == 1 + -(-(85_000 - 378) // (378 - 128))
    assert held
    assert all(end - start == 2 for start, end in held)


# -- for any text --------------------------------------------------------------------------------

TEXT = st.text(st.sampled_from("abcdexé€ 😀\n\t\u200b."), min_size=1, max_size=60).filter(str.strip)


@settings(max_examples=400, deadline=None)
@given(
    context=TEXT,
    question=TEXT,
    span=st.tuples(st.integers(0, 59), st.integers(1, 8)),
    max_length=st.integers(16, 30),
    stride=st.integers(0, 4),
    side=st.sampled_from(["left", "right"]),
    kind=st.sampled_from(["bytes", "letters"]),
)
def test_positions_lead_back_to_the_answer(context, question, span, max_length, stride, side, kind, letters):
    text = context[span[0] % len(context) :][: span[1]]
    start = span[0] % len(context)
    if not text.strip():
        return
    tokenizer = by_bytes(padding_side=side) if kind == "bytes" else letters
    windows = make_windows(asked(context, text, question, start), tokenizer, max_length, stride)
    alone = make_windows(asked(context, text, "", start), tokenizer, 600)  # all in one window
    ((first, last),) = positions(alone)
    tokens = last - first + 1 if first != alone.column("cls")[0] else 0
    firsts, lasts = windows.tokens("starts"), windows.tokens("ends")
    begins = np.cumsum(windows.lengths()) - windows.lengths()
    covered: set[int] = set()
    held = 0
    for begin, length, place, anchor in zip(
        begins, windows.lengths(), positions(windows), windows.column("cls"), strict=True
    ):
        assert length <= max_length
        covered.update(firsts[begin : begin + length].tolist())
        if place == (anchor, anchor):
            continue
        held += 1
        one, last = begin + place[0], begin + place[1]
        assert 0 <= firsts[one] <= lasts[last] <= len(context)
        found = context[firsts[one] : lasts[last]]
        if kind == "bytes":  # tokens are never wider than a character
            assert found == text.strip()
        else:
            assert text.strip(" \n\t\u200b") in found  # BERT drops zero-width spaces
    assert covered - {-1} == set(alone.tokens("starts").tolist()) - {-1}  # nothing of the context is left out
    assert (windows.lost == 1) == (held == 0)
    if 0 < tokens <= stride + 1:
        assert held


@pytest.mark.realdata
def test_every_answer_of_squad_is_in_a_window(realdata):
    from transformers import AutoTokenizer

    from fineprune.checkpoint.model_folder import minilm_folder

    read = read_file(realdata / "squad" / "train-v1.1.json")
    few = Questions(*(column[::5] for column in (read.ids, read.questions, read.contexts, read.answers)))
    windows = make_windows(few, AutoTokenizer.from_pretrained(minilm_folder()), 384)
    assert (windows.cut, windows.lost) == (0, 0)
    begins = np.cumsum(windows.lengths()) - windows.lengths()
    firsts, lasts = windows.tokens("starts"), windows.tokens("ends")
    found = {}
    for begin, row, (one, last) in zip(begins, windows.column("question"), positions(windows), strict=True):
        if one:
            found[row] = few.contexts[row][firsts[begin + one] : lasts[begin + last]]
    assert len(found) == len(few) == 2376
    assert all(few.answers[row][0].text.strip() in text for row, text in found.items())
