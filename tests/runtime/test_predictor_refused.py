"""Folders that a predictor refuses, and answers that it does not give."""

import json
import os
import zlib

import numpy as np
import pytest
import torch
from runtime.models import (
    TEXTS,
    make_model,
    make_tokenizer,
    renew,
    save,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fineprune import FinepruneError
from fineprune.checkpoint.loading import open_model
from fineprune_runtime import EngineError, dtypes
from fineprune_runtime.loading import load
from fineprune_runtime.manifest import checksum

BEYOND = 3e38  # finite in a file, and not once it is multiplied or squared


def changed(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return renew(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', which the engine cannot run whole"),
        ({"architectures": ["BertForMaskedLM"]}, "a class that ends in ForSequenceClassification"),
        # BERT's heads of both have a classifier; that of tokens has no pooler.
        (
            {"architectures": ["BertForTokenClassification"]},
            "2 of its weights are not .* such as bert.pooler.dense.bias",
        ),
        ({"architectures": ["BertForQuestionAnswering"]}, "3 labels; starts and ends of answers are 2"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; the engine has gelu"),
        ({"is_decoder": True}, "this bert is a decoder"),
        ({"position_embedding_type": "relative_key"}, "allowed is 'absolute'"),
        (
            {"num_hidden_layers": 1},
            r"16 of its weights are not .* such as bert.encoder.layer.1.attention",
        ),
        (
            {"num_labels": 10**9, "id2label": None},
            r"classifier.bias is of shape \(3,\), and .* asks for \(1000",
        ),
        ({"num_hidden_layers": 3}, "its weights lack bert.encoder.layer.2.attention.self.query.weight"),
        ({"num_hidden_layers": 10**12}, "its weights lack bert.encoder.layer.2"),
        ({"hidden_size": 32, "num_attention_heads": 4}, "expected|asks for"),
        ({"vocab_size": 10**12}, "word_embeddings.weight is of shape"),
    ],
)
def test_folders_that_cannot_be_run(settings, message, tmp_path):
    save(tmp_path / "small", "bert", "text")
    folder = changed(tmp_path / "small", **settings)
    with pytest.raises(EngineError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_config_that_was_changed_afterwards(tmp_path):
    save(tmp_path / "small", "bert", "text")
    file = tmp_path / "small" / "model.safetensors"
    content = load_file(file)
    with safe_open(file, "pt") as opened:
        manifest = json.loads(opened.metadata()["fineprune"])
    manifest["files"] = {"config.json": zlib.crc32((tmp_path / "small" / "config.json").read_bytes())}
    save_file(content, file, {"fineprune": json.dumps(manifest)})
    load(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    (tmp_path / "small" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    with pytest.raises(EngineError, match=r"config.json: does not match its checksum, it was changed"):
        load(tmp_path / "small")
    manifest["files"] = {"vast": 0}  # which is read whole
    save_file(content, file, {"fineprune": json.dumps(manifest)})
    (tmp_path / "small" / "vast").touch()
    os.truncate(tmp_path / "small" / "vast", 2**36)
    with pytest.raises(EngineError, match=r"vast: holds 68,719,476,736 bytes, the most that is read is"):
        load(tmp_path / "small")


def test_tensors_that_a_dense_folder_may_have_besides(tmp_path):
    make_model("bert", "tokens").save_pretrained(tmp_path)
    make_tokenizer("bert").save_pretrained(tmp_path)
    expected = load(tmp_path).logits(TEXTS)
    others = {"bert.pooler.dense.weight": (16, 16), "bert.embeddings.position_ids": (1, 40)}
    others |= {"cls.predictions.bias": (38,), "cls.seq_relationship.weight": (2, 16)}
    tensors = {name: torch.ones(shape) for name, shape in others.items()}
    save_file(load_file(tmp_path / "model.safetensors") | tensors, tmp_path / "model.safetensors")
    for one, other in zip(load(tmp_path).logits(TEXTS), expected, strict=True):
        assert np.array_equal(one, other)
    tensors = {"bert.encoder.layer.1.attention.self.query.lora_A": torch.ones(2, 16)}
    save_file(load_file(tmp_path / "model.safetensors") | tensors, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match=r"1 of its weights are not .* such as .*query.lora_A"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["bert.pooler.dense.weight", "cls.predictions.bias", "classifier.scale"])
def test_a_tensor_that_a_compact_folder_has_besides(name, tmp_path):
    save(tmp_path / "small", "bert", "tokens")
    add_tensor(tmp_path / "small" / "model.safetensors", name)
    # Its checksum is right, so it comes from whoever wrote the file; torch's side refuses it as well.
    with pytest.raises(EngineError, match=f"1 of its weights are not .* such as {name}"):
        load(tmp_path / "small")
    with pytest.raises(FinepruneError, match=f"its files hold {name}"):
        open_model(tmp_path / "small")


def add_tensor(file, name):
    """Add a tensor to the weights of a compact folder, with its checksum."""
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["fineprune"])
    added = torch.ones(3)
    about["tensors"][name] = checksum(name, "torch.float32", (3,), added.numpy())
    save_file(load_file(file) | {name: added}, file, {"fineprune": json.dumps(about)})


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(("task", "name", "value", "message"), [
    ("text", "bert.embeddings.LayerNorm.weight", np.nan, "LayerNorm.weight holds NaN or infinity"),
    ("tokens", "bert.embeddings.word_embeddings.weight", np.nan, "word_embeddings.weight holds NaN"),
    ("questions", "bert.embeddings.position_embeddings.weight", np.inf, "position_embeddings.weight holds"),
    ("text", "bert.pooler.dense.weight", np.nan, "bert.pooler.dense.weight holds NaN or infinity"),
    ("text", "classifier.bias", -np.inf, "classifier.bias holds NaN or infinity"),
    ("text", "bert.embeddings.word_embeddings.weight", BEYOND, r"output for texts\[1\] is NaN or infinite"),
    ("tokens", "bert.embeddings.word_embeddings.weight", BEYOND, r"output for texts\[1\] is NaN or infinite"),
    ("questions", "bert.embeddings.word_embeddings.weight", BEYOND, r"output for texts\[1\] is NaN or inf"),
    ("tokens", "classifier.weight", BEYOND, r"output for texts\[\d\] is NaN or infinite"),
])  # fmt: skip
def test_numbers_that_are_not_finite(task, name, value, message, dtype, tmp_path):
    if dtype not in dtypes():
        pytest.skip("no int8 on this processor")
    make_model("bert", task).save_pretrained(tmp_path)
    tokenizer = make_tokenizer("bert")
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    row = tokenizer.convert_tokens_to_ids("film") if "word" in name else 0
    weights[name].reshape(len(weights[name]), -1)[row] = value
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match=message):
        load(tmp_path, dtype).predict(
            ["good", "film"], ["bad " * 60, "film"] if task == "questions" else None
        )
    with pytest.raises(EngineError, match=message):
        load(tmp_path, dtype).logits(["good", "film"])


def test_texts_where_the_model_read_pairs(tmp_path):
    save(tmp_path / "pairs", "bert", "text", fineprune_text_pairs=True)
    save(tmp_path / "texts", "bert", "text", fineprune_text_pairs=False)
    pairs, texts = load(tmp_path / "pairs"), load(tmp_path / "texts")
    for ask in (pairs.predict, pairs.logits):
        with pytest.raises(
            EngineError, match=r"trained on pairs of texts; give the second text .* --pair .* pairs="
        ):
            ask(["good"])
        assert len(ask(["good"], ["bad"])) == 1
    for ask in (texts.predict, texts.logits):
        with pytest.raises(EngineError, match=r"trained on single texts; leave the second texts out, --pair"):
            ask(["good"], ["bad"])
        assert len(ask(["good"])) == 1


def test_a_tokenizer_of_another_model(tmp_path):
    save(tmp_path / "small", "bert", "text")
    make_tokenizer("roberta").save_pretrained(tmp_path / "small")
    renew(tmp_path / "small")
    with pytest.raises(
        EngineError, match=r"token id \d+: the model's table ends at \d+; the tokenizer is of"
    ):
        load(tmp_path / "small").predict(TEXTS)
