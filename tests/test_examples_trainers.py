"""The examples with trainers of other libraries, and with one's own, run as they are written."""

import importlib.util
from pathlib import Path

import pytest

import fineprune

EXAMPLES = Path(__file__).parents[1] / "examples"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "so", "film", "acting"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


def example(name):
    """Return the module of an example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    """The folder of a tiny BERT."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("body")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return str(folder)


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
