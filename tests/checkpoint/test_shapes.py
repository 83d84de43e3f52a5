"""Shrunk models on disk: the shapes of the files, checked before anything is loaded; and padding."""

import copy
import json

import forked
import numpy as np
import pytest
import torch
from architectures.shrinking import SHRINKS, empty, with_heads
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fineprune
from fineprune import FinepruneError, save_compact, shrink
from fineprune.checkpoint.loading import load, to_dense
from fineprune.checkpoint.shapes import full_size, has_own
from fineprune.pruning.origin import origin_of
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune.training.run.convert import dense_folder

LAYER = "bert.encoder.layer.1."
QUANTIZED = {
    "quant_method": "fineprune",
    "version": 2,
    "values": "float32",
    "embeddings": "keep",
    "shapes": "file",
}


def fewer_in_each_layer(layer, kind, units):
    """Another number of heads and neurons in each layer: they are no ordinary model."""
    return list(range(1 + layer if kind == "neurons" or units > 2 else layer, units))


def shrunk(name="BERT"):
    model = with_heads(name)
    empty(model, fewer_in_each_layer, ("read",))
    done = shrink(model)
    assert not done.ordinary
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A shrunk BERT of four heads of 4 and 32 neurons: 3 and 2 heads, 31 and 30 neurons."""
    return save_compact(shrunk(), tmp_path_factory.mktemp("shrunk") / "model").folder


def quantization(folder):
    return json.loads((folder / "config.json").read_text()).get("quantization_config")


def same(model, loaded, inputs):
    """Whether answers are equal but for the order of sums, which depends on where in memory weights begin."""
    return difference(outputs(model, inputs), outputs(loaded, inputs)) < 1e-6


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # older transformers' DeBERTa
@pytest.mark.parametrize("name", [name for name, entry in SHRINKS.items() if entry])
def test_saved_loaded_and_padded(name, tmp_path, same_weights):
    model = shrunk(name)
    inputs = probe_inputs(model)
    save_compact(model, tmp_path)
    assert quantization(tmp_path) == QUANTIZED
    loaded = load(tmp_path)
    assert same_weights(model, loaded)
    assert same(model, loaded, inputs)
    assert not loaded.is_quantized
    assert origin_of(loaded) == origin_of(model)
    padded = to_dense(full_size(loaded))
    assert difference(outputs(model, inputs), outputs(padded, inputs)) < 1e-5
    full = {key: tensor.shape for key, tensor in with_heads(name).state_dict().items()}
    assert {key: tensor.shape for key, tensor in padded.state_dict().items()} == full
    assert not hasattr(padded.config, "quantization_config")


def test_save_pretrained_writes_the_same_form(tmp_path, same_weights):
    model = shrunk("ViT")  # whose files have other names
    model.save_pretrained(tmp_path / "live")
    type(model).from_pretrained(tmp_path / "live").save_pretrained(tmp_path / "loaded")
    for folder in ("live", "loaded"):
        assert quantization(tmp_path / folder) == QUANTIZED
        loaded = load(tmp_path / folder)
        assert origin_of(loaded) == origin_of(model)
        assert same_weights(model, loaded)
        assert same(model, loaded, probe_inputs(model))


def test_what_config_json_and_fineprune_json_say(folder):
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["intermediate_size"]) == (4, 32)
    about = json.loads((folder / "fineprune.json").read_text())["shrunk"]
    assert about["ordinary"] is False
    assert about["heads"]["bert.encoder.layer.1.attention"] == {"units": [2, 3], "zeros": [], "of": 4}
    assert about["neurons"]["bert.encoder.layer.0"] == {"units": list(range(1, 32)), "zeros": [], "of": 32}


OPENED = """
import sys, torch
if sys.argv[3] == "with": import fineprune
from transformers import BertForSequenceClassification
model = BertForSequenceClassification.from_pretrained(sys.argv[1]).eval()
inputs, answers = torch.load(sys.argv[2])
with torch.no_grad():
    assert torch.equal(model(**inputs).logits, answers)
"""


def test_in_a_new_process(folder, tmp_path):
    model = load(folder)
    inputs = probe_inputs(model)
    torch.save((inputs, outputs(model, inputs)[0]), tmp_path / "answers.pt")
    done = forked.python(OPENED, folder, tmp_path / "answers.pt", "with")
    assert done.returncode == 0, done.stderr
    done = forked.python(OPENED, folder, tmp_path / "answers.pt", "without")
    assert done.returncode == 1
    assert "mismatch" in done.stderr


def test_into_a_class_without_the_head(folder):
    from transformers import BertModel

    body = BertModel.from_pretrained(folder)
    model = load(folder)
    inputs = probe_inputs(model)
    assert torch.equal(body(**inputs).last_hidden_state, model.bert(**inputs).last_hidden_state)
    assert body.encoder.layer[1].attention.self.num_attention_heads == 2
    assert [kept.units for kept in origin_of(body).heads] == [(1, 2, 3), (2, 3)]


@pytest.mark.parametrize(("name", "part"), [("BERT", "bert"), ("T5", "encoder"), ("BART", "model.decoder")])
def test_a_part_is_saved_alone(name, part, tmp_path, same_weights):
    """T5's encoder has a configuration of its own, the others share the model's."""
    encoder = shrunk(name).get_submodule(part)
    encoder.save_pretrained(tmp_path)
    loaded = type(encoder).from_pretrained(tmp_path)
    assert same_weights(encoder, loaded)
    assert origin_of(loaded) == origin_of(encoder)
    assert all(kept.name.startswith(kept.stack) for kept in origin_of(encoder).neurons)


def test_the_body_alone_is_saved_as_a_compact_model(tmp_path, same_weights):
    body = shrunk().bert
    save_compact(body, tmp_path / "body")
    assert same_weights(body, load(tmp_path / "body"))


def test_what_holds_a_model_is_shrunk(tmp_path, same_weights):
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = with_heads("BERT")

        def forward(self, **inputs):
            return self.inner(**inputs)

    holder = Holder()
    empty(holder.inner, lambda _layer, kind, n: [0] if kind == "neurons" else [], ("read",))
    shrink(holder, probe_inputs(holder.inner))
    holder.inner.save_pretrained(tmp_path)
    assert same_weights(holder.inner, load(tmp_path))


def test_zeros_inside_are_packed(tmp_path):
    model = shrunk()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight[:, 1:] = 0
    save_compact(model, tmp_path / "small", values="int8", embeddings="int8")
    assert quantization(tmp_path / "small") == QUANTIZED | {"values": "int8", "embeddings": "int8"}
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert stored["bert.encoder.layer.0.intermediate.dense.weight"].dtype == torch.uint8
    loaded, packed = load(tmp_path / "small"), load(tmp_path / "small", packed=True)
    assert loaded.bert.encoder.layer[0].intermediate.dense.weight.shape == (31, 16)
    assert same(loaded, packed, probe_inputs(model))
    save_compact(loaded, tmp_path / "again", values="int8", embeddings="int8")
    assert same(loaded, load(tmp_path / "again"), probe_inputs(model))
    to_dense(loaded).save_pretrained(tmp_path / "exact")
    assert quantization(tmp_path / "exact") == QUANTIZED
    assert same(loaded, load(tmp_path / "exact"), probe_inputs(model))


@pytest.mark.parametrize("values", ["float16", "int8"])
def test_matrices_without_zeros_are_rounded_too(values, folder, tmp_path):
    """Those of the layers; pooler and head stay exact."""
    model = shrunk()
    save_compact(model, tmp_path / "small", values=values)
    stored, exact = (load_file(place / "model.safetensors") for place in (tmp_path / "small", folder))
    blobs = {name for name, tensor in stored.items() if tensor.dtype == torch.uint8}
    assert blobs == {name for name in exact if ".layer." in name and exact[name].ndim == 2}
    largest = max(float(exact[name].abs().max()) for name in blobs)
    loaded, packed = load(tmp_path / "small"), load(tmp_path / "small", packed=True)
    assert same(loaded, packed, probe_inputs(model))
    for name, tensor in loaded.state_dict().items():
        assert torch.allclose(tensor, exact[name], rtol=0, atol=largest / 254 if name in blobs else 0)
    assert 0 < difference(outputs(model, probe_inputs(model)), outputs(loaded, probe_inputs(model))) < 0.05


def test_a_checkpoint_of_trainer(tmp_path):
    """It is read by load_state_dict, without transformers' loading."""
    model = shrunk()
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight[:, 1:] = 0
    model.save_pretrained(tmp_path)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.bert.encoder.layer[0].intermediate.dense.weight.fill_(1.0)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert same(model, other, probe_inputs(model))


def test_an_ordinary_model_is_written_as_one(tmp_path):
    model = with_heads("Llama")
    empty(model, lambda _layer, _kind, units: list(range(units // 2)), ("read",))
    assert shrink(model).ordinary
    save_compact(model, tmp_path / "dense")
    assert quantization(tmp_path / "dense") is None
    assert json.loads((tmp_path / "dense" / "fineprune.json").read_text())["shrunk"]["ordinary"] is True
    loaded = load(tmp_path / "dense")
    assert same(model, loaded, probe_inputs(model))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, 1:] = 0
    save_compact(model, tmp_path / "sparse")
    assert quantization(tmp_path / "sparse")["version"] == 1


def test_shapes_that_become_ordinary_are_no_longer_attached(tmp_path):
    model = with_heads("BERT")
    empty(model, lambda layer, kind, n: list(range(8 + layer if kind == "neurons" else n)), ("read",))
    assert not shrink(model).ordinary
    assert model.config.quantization_config.shapes == "file"
    empty(model, lambda _layer, kind, n: list(range(8 if kind == "neurons" else n)), ("read",))
    assert shrink(model).ordinary
    assert model.config.intermediate_size == 8
    model.save_pretrained(tmp_path)
    assert quantization(tmp_path) is None


@pytest.mark.parametrize(
    "entry",
    [None, 1, {}, [2, 3]]
    + [
        {"units": units, "zeros": [], "of": 4}
        for units in ([3, 2], [2, 4], [1, 2, 3], ["a", "b"], [-1, 2], [])
    ]
    + [{"units": [2, 3], "zeros": [0], "of": 4}, {"units": [2, 3], "zeros": [], "of": "4"}],
)
def test_numbers_that_cannot_be_are_not_taken(entry, folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with safe_open(folder / "model.safetensors", "pt") as file:
        manifest = json.loads(file.metadata()["fineprune"])
    assert manifest["shrunk"]["heads"][f"{LAYER}attention"]["units"] == [2, 3]
    manifest["shrunk"]["heads"][f"{LAYER}attention"] = entry
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", {"fineprune": json.dumps(manifest), "format": "pt"})
    assert origin_of(load(tmp_path)).heads[1].units == (0, 1)


def test_dense_folder_pads(folder, tmp_path):
    done = dense_folder(folder, tmp_path / "full")
    assert done.difference < 1e-5
    assert quantization(tmp_path / "full") is None
    model, full = load(folder), load(tmp_path / "full")
    assert full.bert.encoder.layer[1].attention.self.query.weight.shape == (16, 16)
    assert not has_own(full)
    inputs = probe_inputs(model)
    assert difference(outputs(model, inputs), outputs(full, inputs)) < 1e-5


def test_a_delta_of_a_shrunk_model_is_refused(folder, tmp_path):
    with pytest.raises(
        FinepruneError, match=r"was shrunk, so its matrices are not those of .*; save it whole"
    ):
        fineprune.save_delta(load(folder), tmp_path / "delta", base=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (  # larger than config.json says
            {"output.dense.weight": (16, 33)},
            r"1.output.dense.weight: the files hold 16 x 33, whose side 1 is not 1 to 32 neurons, as config",
        ),
        ({"attention.output.dense.weight": (16, 20)}, r"16 x 20, whose side 1 is not 1 to 4 heads of 4 each"),
        ({"attention.output.dense.weight": (16, 6)}, r"16 x 6, whose side 1 is not 1 to 4 heads of 4 each"),
        ({"attention.output.dense.weight": (16, 0)}, r"16 x 0, whose side 1 is not 1 to 4 heads of 4 each"),
        (
            {"attention.output.dense.weight": (8,)},
            r"files hold 8, whose side 1 is not 1 to 4 heads of 4 each",
        ),
        (  # halves that disagree
            {"output.dense.weight": (16, 29)},
            r"intermediate.dense.weight: the files hold 30 x 16; with 29 of 32 neurons in its layer it is 29",
        ),
        (
            {"intermediate.dense.bias": (29,)},
            r"dense.bias: the files hold 29; with 30 of 32 neurons .* it is 30",
        ),
        ({"attention.self.key.weight": (12, 16)}, r"key.weight: the files hold 12 x 16; with 2 of 4 heads"),
        ({"attention.self.value.weight": (8, 15)}, r"value.weight: the files hold 8 x 15; with 2 of 4 heads"),
        (
            {"output.dense.weight": (15, 30)},
            r"output.dense.weight: the files hold 15 x 30; with 30 of 32 neurons",
        ),
    ],
)
def test_files_that_are_refused_before_anything_is_allocated(changes, message, folder, tmp_path):
    for name in ("config.json", "fineprune.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / "model.safetensors")
    for name, new in changes.items():
        is_blob = isinstance(new, bytes)
        tensors[LAYER + name] = torch.tensor(list(new), dtype=torch.uint8) if is_blob else torch.ones(new)
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    with pytest.raises(FinepruneError, match=message) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "format version 1 .*reads version 2"),
        ({"version": 3}, "format version 3 .*reads version 2"),
        ({"shapes": "config"}, "format version 2 "),
    ],
)
def test_configurations_that_are_refused(change, message, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FinepruneError, match=message):
        type(load(folder)).from_pretrained(tmp_path)


def test_a_changed_tensor_is_found(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FinepruneError, match="does not match its checksum"):
        load(tmp_path)


def test_shapes_of_single_units_in_the_original_numbering(tmp_path):
    model = with_heads("GPT-2")
    empty(model, lambda layer, kind, n: [] if kind == "heads" and layer else [n - 1], ("read",))
    shrink(model)
    save_compact(model, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert [str(kept) for kept in origin_of(loaded).heads] == ["1 of 4", "0 of 4 (1 more kept, zero)"]
    assert [kept.units for kept in origin_of(loaded).neurons] == [(63,), (63,)]
    assert np.array_equal(loaded.transformer.h[0].mlp.c_fc.weight.shape, (16, 1))
