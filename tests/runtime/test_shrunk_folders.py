"""Folders of shrunk models: layers have the shapes of the files, within those of config.json."""

import copy
import logging
import warnings

import numpy as np
import pytest
import torch
from runtime.models import make_model, make_tokenizer
from support import tiny_bert
from transformers import AutoModelForSequenceClassification

from fineprune import accelerate, save_compact, shrink
from fineprune.pruning.low_rank import factorize
from fineprune_runtime import EngineError, load
from fineprune_runtime.architectures import ARCHITECTURES
from fineprune_runtime.encoder_layers import shrunk_shapes

TEXTS = ["good film", "bad", "good good bad film"]


@pytest.fixture
def small(tokenizer, tmp_path):
    """A BERT with 2 and 3 of 4 heads, 20 and 31 of 32 neurons, and zeros in what remains."""
    model = tiny_bert(num_attention_heads=4, vocab_size=len(tokenizer))
    with torch.no_grad():
        for layer, (heads, neurons) in zip(model.bert.encoder.layer, ((2, 12), (1, 1)), strict=True):
            layer.attention.output.dense.weight[:, : 4 * heads] = 0
            layer.output.dense.weight[:, :neurons] = 0
            layer.intermediate.dense.weight[:, ::2] = 0
    done = shrink(model)
    assert [len(kept.units) for kept in done.heads + done.neurons] == [2, 3, 20, 31]
    save_compact(model, tmp_path / "small", tokenizer)
    return tmp_path / "small"


def test_predicts_as_torch_does(small, tokenizer, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(small).eval()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        expected = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
        predictor = load(small)
    assert "was never pruned" not in caplog.text
    for found, row in zip(predictor.predict(TEXTS), expected, strict=True):
        assert found.score == pytest.approx(float(row.max()), abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = accelerate(copy.deepcopy(model))
    with torch.no_grad():
        answers = fast(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
    assert torch.allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["modernbert", "deberta-v2", "distilbert"])
def test_other_widths_in_each_layer(kind, tmp_path):
    heads = "n_heads" if kind == "distilbert" else "num_attention_heads"
    model, tokenizer = make_model(kind, "text", **{heads: 4}), make_tokenizer(kind)
    known = ARCHITECTURES[kind]
    with torch.no_grad():
        for index, (dead, neurons) in enumerate(((2, 12), (1, 1))):
            layer = model.base_model.get_submodule(f"{known.layer}.{index}")
            layer.get_submodule(known.matrices["O"]).weight[:, : 4 * dead] = 0
            layer.get_submodule(known.matrices["FFN out"]).weight[:, :neurons] = 0
    shrink(model)
    save_compact(model, tmp_path, tokenizer)
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    widths = [
        small.base_model.get_submodule(f"{known.layer}.{index}.{known.matrices[part]}").weight.shape[1]
        for index in range(2)
        for part in ("O", "FFN out")
    ]
    assert widths[0] <= 8
    assert widths[1] <= 20
    assert widths[2] <= 12
    assert widths[0] < widths[2]
    with torch.no_grad():
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        expected = model(**batch).logits
        assert torch.allclose(small(**batch).logits, expected, atol=1e-5)
        assert torch.allclose(accelerate(copy.deepcopy(small))(**batch).logits, expected, atol=1e-5)
    found = load(tmp_path).logits(TEXTS)
    assert torch.allclose(torch.from_numpy(np.stack(found)), expected, atol=1e-5)


CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
}
OUT, FFN = "attention.output.dense.weight", "output.dense.weight"


def shapes(config=CONFIG, **changed):
    stored = {OUT: (16, 8), FFN: (16, 20)} | changed
    return shrunk_shapes(config, "", stored.__getitem__)


def test_the_shapes_of_a_layer():
    names = ARCHITECTURES["bert"].matrices
    assert shapes() == {
        f"{names['Q']}.weight": (8, 16),
        f"{names['K']}.weight": (8, 16),
        f"{names['V']}.weight": (8, 16),
        OUT: (16, 8),
        f"{names['FFN in']}.weight": (20, 16),
        FFN: (16, 20),
    }


@pytest.mark.parametrize(
    ("changed", "allowed"),
    [
        ({OUT: (16, 6)}, "16 outputs and 4 to 16 inputs, 4 a head"),
        ({OUT: (16, 20)}, "4 to 16 inputs"),
        ({OUT: (16, 0)}, "4 to 16 inputs"),
        ({OUT: (8, 8)}, "16 outputs"),
        ({OUT: (16,)}, "16 outputs"),
        ({FFN: (16, 33)}, "16 outputs and 1 to 32 inputs; fetch"),
        ({FFN: (16, 0)}, "1 to 32 inputs"),
    ],
)
def test_shapes_that_cannot_be(changed, allowed):
    with pytest.raises(EngineError, match=allowed):
        shapes(**changed)


def test_fewer_heads_where_a_bias_of_positions_is_for_all():
    config = CONFIG | {"model_type": "mpnet", "architectures": ["MPNetForSequenceClassification"]}
    names = {"attention.attn.o.weight": (16, 8), "output.dense.weight": (16, 20)}
    with pytest.raises(EngineError, match="16 outputs and 4 to 16 inputs"):
        shrunk_shapes(config, "", names.__getitem__)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_thin_layers_are_multiplied_out(kind, tmp_path):
    """The layers of a low-rank model are two matrices in the files, and one in the engine."""
    model, tokenizer = make_model(kind, "text", pruned=False), make_tokenizer(kind)
    factorize(model, 1.2)
    save_compact(model, tmp_path, tokenizer)
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = small(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
    for found, row in zip(load(tmp_path).predict(TEXTS), expected, strict=True):
        assert found.score == pytest.approx(float(row.max()), abs=1e-5)


def test_thin_matrices_without_a_product(tokenizer, tmp_path):
    model = tiny_bert(vocab_size=len(tokenizer))
    factorize(model, 1.2)
    model.bert.encoder.layer[1].output.dense[1].weight = torch.nn.Parameter(torch.ones(16, 3))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"layer.1.output.dense.0.weight \(8, 32\) and .* have no product"):
        load(tmp_path)
