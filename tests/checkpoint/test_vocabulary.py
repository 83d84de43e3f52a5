"""A vocabulary shrinks to what a corpus takes, and the model computes what it did."""

import copy
import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.checkpoint.model_folder import minilm_folder
from fineprune.checkpoint.vocabulary import shrink_vocabulary
from fineprune.errors import FinepruneError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDPIECE = [
    "[PAD]",
    "[unused]",
    *SPECIAL[1:],
    "a",
    "b",
    "##a",
    "##b",
    "cab",
    "ab",
    "##ba",
    "abba",
    "c",
    "##c",
]
CORPUS = ["ab abba", ("abba", "a ab"), "b", "ab?"]
# Used: ab, abba, a, b and [UNK] for the question mark. Kept besides: the special tokens, which all
# have rows of their own, and the single characters. Gone: [unused], cab and ##ba.
KEPT = [*SPECIAL, "a", "b", "##a", "##b", "ab", "abba", "c", "##c"]
KEPT_IDS = [0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15]


@pytest.fixture(scope="module")
def bert(bert_of):
    """`bert(head, rows, **config)`: a BERT and its tokenizer of WORDPIECE."""
    return partial(bert_of, WORDPIECE)


def in_order(tokenizer):
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)


@torch.no_grad()
def outputs(model, tokenizer, texts):
    """What the model computes for each text alone, and for all as one padded batch if it can be."""
    batches = [[text] for text in texts] + ([texts] if tokenizer.pad_token else [])
    return [
        model(**tokenizer(batch, padding=len(batch) > 1, return_tensors="pt"))[0].clone() for batch in batches
    ]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_wordpiece_keeps_these_ids(bert):
    model, tokenizer = bert(sep_token_id=4)
    table = model.bert.embeddings.word_embeddings.weight.detach().clone()
    shrunk, smaller = shrink_vocabulary(model, tokenizer, iter(CORPUS))
    assert shrunk is model
    assert in_order(smaller) == KEPT
    assert in_order(tokenizer) == WORDPIECE
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, table[KEPT_IDS])
    assert model.bert.embeddings.word_embeddings.num_embeddings == 13
    assert model.config.vocab_size == 13
    assert model.config.sep_token_id == smaller.sep_token_id == 3
    assert smaller("ab")["input_ids"] == [2, 9, 3]


def test_the_same_outputs_for_the_corpus(bert):
    model, tokenizer = bert()
    before = outputs(model, tokenizer, CORPUS)
    model, smaller = shrink_vocabulary(model, tokenizer, CORPUS)
    assert same(outputs(model, smaller, CORPUS), before)


def test_other_texts_are_spelt(bert):
    _, smaller = shrink_vocabulary(*bert(), CORPUS)
    assert smaller.tokenize("cab abbaba c") == ["c", "##a", "##b", "abba", "##b", "##a", "c"]


def test_saved_and_loaded_again(tmp_path, bert):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, smaller = shrink_vocabulary(*bert(), CORPUS)
    model.save_pretrained(tmp_path)
    smaller.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert in_order(again) == KEPT
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    # the weights, not the outputs: these differ by 1e-7 where loading aligns a matrix otherwise
    assert same(loaded.state_dict().values(), model.state_dict().values())
    assert again(CORPUS)["input_ids"] == smaller(CORPUS)["input_ids"]


def test_twice_changes_nothing_more(bert, same_weights):
    model, smaller = shrink_vocabulary(*bert(), CORPUS)
    before = copy.deepcopy(model)
    model, again = shrink_vocabulary(model, smaller, CORPUS)
    assert in_order(again) == KEPT
    assert same_weights(model, before)


def test_the_table_keeps_its_kind(bert):
    model, tokenizer = bert("Model", pad_token_id=4)
    model.half().embeddings.word_embeddings.weight.requires_grad_(False)
    shrink_vocabulary(model, tokenizer, CORPUS)
    table = model.get_input_embeddings()
    assert (table.weight.dtype, table.weight.requires_grad) == (torch.float16, False)
    assert table.padding_idx == model.config.pad_token_id == 3


def test_the_tokenizers_settings_stay(bert):
    model, tokenizer = bert()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(pad_id=5, pad_token="[MASK]")
    tokenizer.model_max_length = 40
    _, smaller = shrink_vocabulary(model, tokenizer, ["a b a b a b ab"])  # ab stands beyond the cut
    assert "ab" in smaller.get_vocab()
    for one in (tokenizer, smaller):
        assert one.backend_tokenizer.truncation["max_length"] == 4
    assert tokenizer.backend_tokenizer.padding["pad_id"] == 5
    assert smaller.backend_tokenizer.padding["pad_id"] == 4
    assert (smaller.model_max_length, smaller.name_or_path) == (40, tokenizer.name_or_path)


def test_added_tokens_stay_and_rows_without_a_token_go(bert):
    model, tokenizer = bert(rows=24)
    tokenizer.add_tokens(["<new>"])  # 16
    before = outputs(model, tokenizer, ["a <new> b"])
    model, smaller = shrink_vocabulary(model, tokenizer, ["a"])
    # without ab and abba, so 11 of WordPiece's
    assert smaller("<new>")["input_ids"] == [2, 11, 3]
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 12
    assert same(outputs(model, smaller, ["a <new> b"]), before)


def test_a_model_that_is_being_pruned(bert):
    from fineprune.config import PruningConfig
    from fineprune.pruning.preparing import prepare

    model, tokenizer = bert()
    prepare(model, PruningConfig(density=0.5), total_steps=20)
    before = outputs(model, tokenizer, CORPUS)
    model, smaller = shrink_vocabulary(model, tokenizer, CORPUS)
    assert same(outputs(model, smaller, CORPUS), before)


def test_what_is_no_tokenizer(bert):
    with pytest.raises(FinepruneError, match="tokenizer=NoneType: give the model's tokenizer"):
        shrink_vocabulary(bert()[0], None, CORPUS)


def test_bpe_keeps_the_merges_behind_its_tokens():
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Tokenizer

    tokens = ["ca", "a", "b", "c", "Ġ", "ab", "bc", "abc", "cab", "Ġa", "<|endoftext|>"]
    merges = ["c a", "a b", "ab c", "b c", "a bc", "ca b", "Ġ a"]
    tokenizer = GPT2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge.split()) for merge in merges],
        pad_token="<|endoftext|>",
    )
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=11, pad_token_id=10, eos_token_id=[10, 0])
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config).eval()
    texts = ["abc", "b abc"]
    before = outputs(model, tokenizer, texts)
    model, smaller = shrink_vocabulary(model, tokenizer, texts)

    # abc is made of ab + c (this order applies) and of a + bc, so ab and bc stay; ca stays as the
    # config names it (id 0), and what makes it; cab and Ġa go.
    assert in_order(smaller) == ["ca", "a", "b", "c", "Ġ", "ab", "bc", "abc", "<|endoftext|>"]
    left = json.loads(smaller.backend_tokenizer.to_str())["model"]["merges"]
    assert left == [["c", "a"], ["a", "b"], ["ab", "c"], ["b", "c"], ["a", "bc"]]
    assert smaller.tokenize("cab a") == ["ca", "b", "Ġ", "a"]
    assert (model.config.pad_token_id, model.config.eos_token_id) == (8, [8, 0])
    assert model.config.bos_token_id == 50256  # the default: beyond the table before and after
    assert same(outputs(model, smaller, texts), before)


def test_roberta_counts_positions_from_an_id_that_must_not_move():
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizer

    tokens = ["<s>", "ba", "<pad>", "aa", "</s>", "<unk>", "<mask>", "a", "b", "Ġ", "ab"]
    merges = [("a", "b"), ("b", "a"), ("a", "a")]
    tokenizer = RobertaTokenizer(vocab={t: index for index, t in enumerate(tokens)}, merges=merges)
    ids = {"bos_token_id": 0, "pad_token_id": 2, "eos_token_id": 4}
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=11, **SMALL, **ids)).eval()
    texts = ["ab a", "b"]
    before = outputs(model, tokenizer, texts)
    model, smaller = shrink_vocabulary(model, tokenizer, texts)
    assert in_order(smaller) == [token for token in tokens if token != "aa"]  # ba keeps <pad> at 2
    assert smaller("ab")["input_ids"] == [0, 9, 3]  # RobertaProcessing
    assert same(outputs(model, smaller, texts), before)


UNIGRAM = [
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁ab", -2.0),
    ("a", -4.0),
    ("▁a", -3.0),
    ("ba", -5.0),
    ("▁", -3.0),
    ("b", -4.0),
    ("abba", -9.0),  # the worst: an unknown character costs 10 more
    ("▁b", -3.5),
]


@pytest.mark.parametrize("name", ["T5EncoderModel", "T5ForSequenceClassification"])
def test_unigram_and_tables_that_are_shared(name, tmp_path):
    import transformers

    tokenizer = transformers.T5Tokenizer(vocab=UNIGRAM, extra_ids=0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 16}
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    texts = ["ab", "b abx"]
    before = outputs(model, tokenizer, texts)
    model, smaller = shrink_vocabulary(model, tokenizer, texts)
    assert in_order(smaller) == [piece for piece, _ in UNIGRAM if piece != "ba"]
    # -3 -4 -4 for ▁a b a beats -3 -4 -4 -4 for ▁ and single characters
    assert smaller.tokenize("aba") == ["▁ab", "a"]
    assert same(outputs(model, smaller, texts), before)
    encoder = model.get_encoder()
    assert encoder.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert encoder.config.vocab_size == model.config.vocab_size == 10

    model.save_pretrained(tmp_path)
    smaller.save_pretrained(tmp_path)
    loaded, again = type(model).from_pretrained(tmp_path), type(smaller).from_pretrained(tmp_path)
    assert same(loaded.state_dict().values(), model.state_dict().values())
    assert again(texts)["input_ids"] == smaller(texts)["input_ids"]


def fast(model, template=False):
    """A tokenizer around a model of `tokenizers`, whose post-processor is nested in a sequence."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        end = backend.token_to_id("<end>")
        backend.post_processor = processors.Sequence(
            [processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", end)])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_the_id_of_unigrams_unknown_token_moves(bert):
    from tokenizers.models import Unigram

    pieces = [("aa", -5.0), ("a", -1.0), ("<unk>", 0.0), ("b", -2.0), ("zz", -9.0), ("<end>", 0.0)]
    model, _ = bert("Model")
    model, smaller = shrink_vocabulary(model, fast(Unigram(pieces, unk_id=2), template=True), ["ab"])
    # zz, the worst, stays; aa does not; 0 and 2 do as ids that BERT's config or the tokenizer names
    assert in_order(smaller) == ["aa", "a", "<unk>", "b", "zz", "<end>"]
    model.config.pad_token_id = model.get_input_embeddings().padding_idx = None
    model, smaller = shrink_vocabulary(model, smaller, ["ab"])
    assert in_order(smaller) == ["a", "<unk>", "b", "zz", "<end>"]
    assert smaller("ax")["input_ids"] == [0, 1, 4]


def test_word_level(bert):
    from tokenizers.models import WordLevel

    words = {word: index for index, word in enumerate(["one", "two", "three", "<unk>", "x", "<end>"])}
    tokenizer = fast(WordLevel(words, unk_token="<unk>"), template=True)
    model, _ = bert("Model", pad_token_id=None)
    table = model.get_input_embeddings().weight
    model, smaller = shrink_vocabulary(model, tokenizer, ["two four"])
    assert in_order(smaller) == ["two", "<unk>", "x", "<end>"]
    assert smaller("two three x")["input_ids"] == [0, 1, 2, 3]
    assert torch.equal(model.get_input_embeddings().weight, table[[1, 3, 4, 5]])


WORDS = st.lists(st.text("abc ", max_size=12), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece"])
@settings(max_examples=25, deadline=None)
@given(used=WORDS, others=WORDS)
def test_any_corpus_keeps_its_tokens_and_others_stay_known(kind, used, others, bert):
    from tokenizers import models

    parts = ["a", "b", "c", "ab", "bc", "ca", "abc", "cab", "bca", "abab", "<unk>"]
    ids = {part: index for index, part in enumerate(parts)}
    merges = [
        ("a", "b"),
        ("c", "a"),
        ("b", "c"),
        ("ab", "c"),
        ("c", "ab"),
        ("bc", "a"),
        ("ab", "ab"),
        ("a", "bc"),
    ]
    tokenizer = fast(
        {
            "BPE": lambda: models.BPE(ids, merges, unk_token="<unk>"),
            "Unigram": lambda: models.Unigram([(part, -1.5 - ids[part] / 7) for part in parts], unk_id=10),
            "WordPiece": lambda: models.WordPiece(
                {token: index for index, token in enumerate([*parts, *(f"##{part}" for part in parts)])},
                unk_token="<unk>",
            ),
        }[kind]()
    )
    model, _ = bert("Model", rows=22, pad_token_id=None)
    _, smaller = shrink_vocabulary(model, tokenizer, used)
    assert [smaller.tokenize(text) for text in used] == [tokenizer.tokenize(text) for text in used]
    assert not any("<unk>" in smaller.tokenize(text) for text in others)


SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A film that is clever, warm and very funny.",
    "The plot makes no sense whatsoever.",
    "Unsurprisingly, the screenplay's dialogue feels overwritten.",
    "Where is the nearest railway station?",
    "She sold 1,250 shares at $37.50 each in March 2019.",
    "Photosynthesis converts carbon dioxide into oxygen.",
    "Der Hund läuft über die Straße.",
    "I can't believe it's not butter!",
    "Antidisestablishmentarianism is a long word.",
    "He re-read the pre-war correspondence.",
    "Tokyo (東京) is the capital of Japan.",
    "The committee has postponed its decision.",
    "Heavy rain flooded the valley overnight 🌧.",
    "Two plus two equals four.",
    "An utterly forgettable performance by everyone involved.",
    "def shrink(model): return model",
    "Movement pruning keeps the weights that move away from zero.",
    "WHY ARE YOU SHOUTING???",
    ("A man is playing a guitar.", "Someone plays an instrument."),
]


def test_minilm():
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModel.from_pretrained(minilm_folder()).eval()
    before = outputs(model, tokenizer, SENTENCES[-3:])
    model, smaller = shrink_vocabulary(model, tokenizer, SENTENCES)
    assert len(smaller) == model.config.vocab_size == len(model.get_input_embeddings().weight) < 5_000
    for text in SENTENCES:
        text = text if isinstance(text, tuple) else (text,)
        old, new = tokenizer(*text)["input_ids"], smaller(*text)["input_ids"]
        assert smaller.convert_ids_to_tokens(new) == tokenizer.convert_ids_to_tokens(old)
    assert same(outputs(model, smaller, SENTENCES[-3:]), before)
    assert "[UNK]" not in smaller.tokenize("Quixotic zebras vexed my jumpy flock!")
