"""Layers of a list, taken out of a whole model."""

import pytest
import torch
from architectures.models import make
from tasks.test_modeling import TWO
from transformers import AutoModelForSequenceClassification, GPTNeoConfig, GPTNeoModel

from fineprune import FinepruneError
from fineprune.pruning.probe import outputs, probe_inputs
from fineprune.tasks.layer_choice import keep_chosen
from fineprune.tasks.modeling import build_model
from fineprune.training.run.recipe import ModelConfig, Recipe


def test_every_other_layer(pretrained, tmp_path):
    whole, _ = build_model(pretrained, TWO)
    model, _ = build_model(pretrained, TWO, layers=[0, 2])
    assert model.config.num_hidden_layers == 2
    for short, long in zip(model.bert.encoder.layer, (0, 2), strict=True):
        assert torch.equal(short.output.dense.weight, whole.bert.encoder.layer[long].output.dense.weight)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, whole.get_input_embeddings().weight)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    inputs = probe_inputs(model)
    assert all(map(torch.equal, outputs(model, inputs), outputs(again, inputs)))


@pytest.mark.parametrize("name", ["BERT", "DistilBERT", "GPT-2", "Llama", "ViT", "BART", "DeBERTa-v2"])
def test_the_first_layer_alone(name):
    whole = make(name)
    model = keep_chosen(whole, [1], name)
    assert whole.config.num_hidden_layers == 2 != model.config.num_hidden_layers == 1
    assert all(bool(tensor.isfinite().all()) for tensor in outputs(model, probe_inputs(model)))


@pytest.mark.parametrize(("name", "odd"), [("T5", "relative_attention_bias"), ("ModernBERT", "attn_norm")])
def test_layers_that_cannot_take_each_others_places(name, odd):
    with pytest.raises(FinepruneError, match=rf"layers is \[1\].*since .*{odd}.*; keep the first"):
        keep_chosen(make(name), [1], name)
    assert keep_chosen(make(name), [0], name).config.num_hidden_layers == 1


def test_layers_that_are_told_apart_by_their_numbers():
    config = GPTNeoConfig(
        vocab_size=50, hidden_size=16, num_layers=4, num_heads=2, intermediate_size=32, window_size=2,
        attention_types=[[["global", "local"], 2]], max_position_embeddings=32, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPTNeoModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert keep_chosen(model, [0, 1], "neo").config.num_layers == 2
    with pytest.raises(FinepruneError, match=r"layers is \[0, 2\], and a model of these layers answers"):
        keep_chosen(model, [0, 2], "neo")


@pytest.mark.parametrize("layers", [[], [2, 1], [0, 0], [0, 3], [-1, 1]])
def test_lists_that_do_not_fit(pretrained, layers):
    with pytest.raises(FinepruneError, match=r"layers is \[.*\]; the model has 3, so give rising numbers"):
        build_model(pretrained, TWO, layers=layers)


def test_a_recipe():
    sections = {"task": {"train": "a.csv", "validation": "b.csv"}, "training": {}}
    recipe = Recipe.from_dict({"model": {"name": "x", "layers": [0, 2]}} | sections)
    assert recipe.model == ModelConfig("x", layers=(0, 2))
    assert recipe.to_dict()["model"]["layers"] == [0, 2]
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(FinepruneError, match=r"model.layers=-1: must be a whole number"):
        ModelConfig("x", layers=[-1, 2])
