"""Models of thin layers on disk: loaded as they are, or multiplied out; what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from architectures.models import make
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny_bert

from fineprune import FinepruneError, load, save_compact, save_delta
from fineprune.checkpoint.shapes import full_size, has_own
from fineprune.pruning.low_rank import factorize, is_low_rank
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune.training.run.convert import dense_folder

QUERY = "bert.encoder.layer.0.attention.self.query"


def thin(name="BERT"):
    model = make(name)
    factorize(model, 1.5)
    return model


@pytest.mark.parametrize("name", ["BERT", "DistilBERT", "ViT", "GPT-2", "T5", "Llama"])
def test_saved_loaded_and_multiplied_out(name, tmp_path, same_weights):
    model = thin(name)
    assert has_own(model)
    inputs = probe_inputs(model)
    model.save_pretrained(tmp_path / "plain")
    loaded = type(model).from_pretrained(tmp_path / "plain")
    assert is_low_rank(loaded)
    assert same_weights(model, loaded)
    compact = save_compact(loaded, tmp_path / "compact")
    assert compact.difference == 0
    again = load(tmp_path / "compact")
    assert same_weights(model, again)
    dense_folder(tmp_path / "compact", tmp_path / "dense")
    dense = type(model).from_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not is_low_rank(dense)
    assert difference(outputs(model, inputs), outputs(dense, inputs)) < 1e-5


def test_pruned_and_rounded_matrices_stay_packed(tmp_path):
    model = thin()
    with torch.no_grad():
        for block in model.bert.encoder.layer:
            block.intermediate.dense[1].weight[:, ::2] = 0
    save_compact(model, tmp_path, values="int8")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored[f"{QUERY}.0.weight"].dtype == torch.uint8
    inputs = probe_inputs(model)
    loaded, packed = load(tmp_path), load(tmp_path, packed=True)
    assert difference(outputs(loaded, inputs), outputs(packed, inputs)) < 1e-6
    assert difference(outputs(model, inputs), outputs(loaded, inputs)) < 0.05


def test_into_a_class_without_the_head(tmp_path):
    from transformers import BertModel

    model = thin()
    model.save_pretrained(tmp_path)
    body = BertModel.from_pretrained(tmp_path)
    inputs = probe_inputs(model)
    expected = model.bert(**inputs).last_hidden_state
    assert torch.equal(body.eval()(**inputs).last_hidden_state, expected)


def test_a_dense_model_is_given_back_as_it_is():
    model = tiny_bert()
    assert full_size(model) is model
    assert not has_own(model)


def changed(folder: Path, name: str, tensor: torch.Tensor) -> None:
    """Replace a tensor of a folder that `save_pretrained` wrote, without its manifest."""
    file = folder / "model.safetensors"
    save_file(load_file(file) | {name: tensor.contiguous()}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "shape"), [("0", (5, 15)), ("1", (15, 5)), ("0", (4, 16)), ("0", (5,)), ("0", (0, 16))]
)
def test_matrices_that_do_not_fit_each_other(part, shape, tmp_path):
    model = tiny_bert()
    factorize(model, 1.5)
    model.save_pretrained(tmp_path)
    changed(tmp_path, f"{QUERY}.{part}.weight", torch.ones(shape))
    with pytest.raises(
        FinepruneError, match=f"{QUERY}.*: the files hold thin matrices of .* product is not 16 x 16"
    ):
        load(tmp_path)


def test_a_missing_half_is_named(tmp_path):
    model = tiny_bert()
    factorize(model, 1.5)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        manifest = opened.metadata()
    del tensors[f"{QUERY}.0.weight"]
    save_file(tensors, file, manifest)
    with pytest.raises(FinepruneError, match=rf"{QUERY}\.0\.weight"):
        load(tmp_path)


def test_a_delta_is_refused(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "base")
    model = tiny_bert()
    factorize(model, 2)
    with pytest.raises(FinepruneError, match="has low-rank layers, so its matrices are not those of"):
        save_delta(model, tmp_path / "delta", tmp_path / "base")
