"""The examples with trainers of other libraries, and with one's own, run as they are written."""

import pytest
from support import example

import fineprune

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "so", "film", "acting"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def body(save_body):
    """The folder of a tiny BERT."""
    return save_body(
        WORDS, hidden_size=32, intermediate_size=64, max_position_embeddings=16, initializer_range=0.3
    )


def test_own_trainer(body, tmp_path):
    assert example("own_trainer").main(body, 12, tmp_path) == pytest.approx(0.10, abs=5e-3)


def test_embeddings(body, tmp_path):
    pytest.importorskip("sentence_transformers")
    assert example("embeddings").main(body, 12, tmp_path) < 1e-5


def test_cross_encoder(body, tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    module = example("cross_encoder")
    assert sorted(module.main(body, 12, tmp_path)) == sorted(module.PASSAGES)
    assert "so good" in capsys.readouterr().out


def test_setfit_like(body, tmp_path):
    pytest.importorskip("sentence_transformers")
    module = example("setfit_like")
    dense, small = module.main(body, 20, tmp_path)
    assert dense == module.LABELS  # what a random encoder of 32 features learns of it is chance
    assert set(small) <= {0, 1}
    assert fineprune.summary(fineprune.load(tmp_path / "small")).density == pytest.approx(0.3, abs=5e-3)


def test_decoder_trl(tmp_path):
    pytest.importorskip("trl")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    sizes |= {"vocab_size": len(WORDS), "max_position_embeddings": 32}
    config = LlamaConfig(eos_token_id=3, pad_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    text = example("decoder_trl").main(str(tmp_path / "model"), 12, tmp_path)
    assert text.startswith("a good")
