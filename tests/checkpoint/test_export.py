"""What is exported answers as the PyTorch model does, or is not there."""

import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.checkpoint import export
from fineprune.checkpoint.export import export_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "it", "film", "is", "and", "better"]
GRAPHS = {
    "onnx": {"model.onnx", "model.onnx.data"},
    "openvino": {"openvino_model.xml", "openvino_model.bin"},
}


def make_model():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=40, initializer_range=0.5,
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture(scope="module")
def model():
    """A pruned model: a quarter of each block's weights, the rest zeros."""
    model = make_model()
    pruner = prepare(model, PruningConfig("magnitude", density=0.25, warmup=0, cooldown=1), 2)
    pruner.step()
    pruner.step()
    return finalize(model)


@pytest.fixture(scope="module")
def exported(model, tokenizer, tmp_path_factory):
    """`exported(to, int8)`: each made once."""
    made = {}

    def make(to, int8):
        if (to, int8) not in made:
            out = tmp_path_factory.mktemp("exports") / "in" / f"{to}{int8}"
            made[to, int8] = export_model(model, tokenizer, out, to, int8)
        return made[to, int8]

    return make


def run(to, folder, inputs):
    """The logits, by the runtime itself."""
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert {put.name for put in session.get_inputs()} == set(arrays)
        return session.run(["logits"], arrays)[0]
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", options)(arrays)["logits"]


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_runtime_answers_as_torch_does(to, exported, model, tokenizer):
    done = exported(to, False)
    for texts in (["better"], ["a film", "it is a better film and it is better", "it", "and " * 34]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits.numpy()
        np.testing.assert_allclose(run(to, done.path, inputs), logits, rtol=0, atol=1e-4)
    assert 0 <= done.difference < 1e-4


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_folder(to, exported):
    from transformers import AutoConfig, AutoTokenizer

    done = exported(to, False)
    files = {path.name for path in done.path.iterdir()}
    assert files == GRAPHS[to] | {"config.json", "export.json", "tokenizer.json", "tokenizer_config.json"}
    assert done.bytes == sum((done.path / name).stat().st_size for name in GRAPHS[to])
    assert [path.name for path in done.path.parent.glob(".*")] == []
    assert AutoConfig.from_pretrained(done.path).model_type == "bert"
    assert AutoTokenizer.from_pretrained(done.path)("better").input_ids == [2, 10, 3]
    (plain := done.path.with_name("plain")).mkdir()
    assert done.path.stat().st_mode == plain.stat().st_mode


def test_zeros_stay_zeros(exported, model):
    import onnx

    zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.ndim == 2)
    assert zeros >= 0.75 * 2 * (4 * 8 * 8 + 2 * 8 * 16)  # of the matrices of two blocks
    graph = onnx.load(exported("onnx", False).path / "model.onnx").graph
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    matrices = [array for array in arrays if array.ndim == 2 and array.dtype == np.float32]
    assert sum(int((array == 0).sum()) for array in matrices) == zeros


@pytest.mark.parametrize(
    ("to", "graph", "mark"),
    [("onnx", "model.onnx", b"MatMulInteger"), ("openvino", "openvino_model.xml", b'element_type="u8"')],
)
def test_int8_is_near_and_says_how_near(to, graph, mark, exported, model, tokenizer):
    done = exported(to, True)
    assert mark in (done.path / graph).read_bytes()
    assert 1e-5 < done.difference < 0.2
    inputs = tokenizer(["a better film", "it"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    assert np.abs(run(to, done.path, inputs) - logits).max() < 0.2 * np.abs(logits).max()


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_nothing_is_printed_and_nothing_reported(to, model, tokenizer, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    export_model(model, tokenizer, tmp_path / "out", to, int8=True)
    assert capfd.readouterr() == ("", "")
    assert (logging.root.handlers, logging.root.manager.disable) == ([], 0)
    assert to == "onnx" or sys.modules["openvino_telemetry"] is None


def test_an_image_model_needs_no_tokenizer(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16,
        patch_size=8, num_channels=1,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    done = export_model(model, None, tmp_path / "vit", "openvino")
    assert done.difference < 1e-4
    inputs = {"pixel_values": torch.ones(4, 1, 16, 16)}
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    np.testing.assert_allclose(run("openvino", done.path, inputs), logits, rtol=0, atol=1e-4)


def test_padding_does_not_count_where_each_token_has_an_answer(monkeypatch):
    from types import SimpleNamespace

    import transformers.exporters

    ours = torch.tensor([[[4.0], [2.0]], [[1.0], [9.0]]])
    theirs = torch.tensor([[[4.0], [1.0]], [[1.0], [0.0]]])  # off by 1 of 4, and by 9 at the padding
    loaded = SimpleNamespace(from_pretrained=lambda *_, **__: lambda **_: {"hidden": theirs})
    monkeypatch.setattr(transformers.exporters, "ExportedModel", loaded)
    batch = {"attention_mask": torch.tensor([[1, 1], [1, 0]])}
    assert export._difference(lambda **_: {"hidden": ours}, [batch], Path("."), "onnx") == 0.25


def refused(match, *arguments, **options):
    with pytest.raises(FinepruneError, match=match) as error:
        export_model(*arguments, **options)
    assert "\n" not in str(error.value)


def test_a_folder_with_files_is_not_touched(tmp_path):
    (tmp_path / "kept").write_text("as it was")
    refused(r"exists, and is not an empty folder; name another", None, None, tmp_path, "onnx")
    refused(r"kept: exists, and is not an empty folder", None, None, tmp_path / "kept", "onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept", "as it was")]


def test_an_unknown_format(tmp_path):
    refused(r"to='tflite': .*allowed are onnx, openvino", None, None, tmp_path / "out", "tflite")


def test_models_that_are_not_ready(tokenizer, tmp_path):
    model = make_model()
    prepare(model, PruningConfig(), 10)
    refused(r"still being pruned: finalize it", model, tokenizer, tmp_path / "out", "onnx")
    refused(r"training mode: model\.eval\(\)", make_model().train(), tokenizer, tmp_path / "out", "onnx")
    refused(
        r"word_embeddings\.weight is torch\.float16 on cpu, allowed: torch\.float32 on cpu",
        make_model().half(), tokenizer, tmp_path / "out", "onnx",
    )  # fmt: skip
    refused(r"BertFor\w+ takes input_ids: give its tokenizer", make_model(), None, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "to", "int8"),
    [
        ("onnx", "onnx", False),
        ("onnxscript", "onnx", False),
        ("onnxruntime", "onnx", True),
        ("openvino", "openvino", False),
        ("nncf", "openvino", True),
    ],
)
def test_a_package_that_is_missing(package, to, int8, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    match = rf"export to {to} needs {package}: pip install 'fineprune\[export\]'"
    refused(match, make_model(), None, tmp_path / "out", to, int8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("difference", "int8", "allowed"),
    [(0.002, False, "0.001"), (math.nan, False, "0.001"), (math.nan, True, "any finite number")],
)
def test_answers_that_are_off(difference, int8, allowed, model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write", lambda *_: None)
    monkeypatch.setattr(export, "_difference", lambda *_: difference)
    match = rf"differ from PyTorch's by {difference} of the largest, allowed: {allowed}; nothing was written"
    refused(match, model, tokenizer, tmp_path / "out", "onnx", int8)
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_that_fails(model, tokenizer, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(export, "_write", fail)
    match = r"BertFor\w+: export to onnx failed, try the other: no such operator"
    refused(match, model, tokenizer, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("graph", [5_000, 10])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    graph, model, tokenizer, tmp_path, monkeypatch, full_disk, names
):
    def write(model, inputs, folder, to, int8):
        (folder / "model.onnx").write_bytes(bytes(graph))

    monkeypatch.setattr(export, "_write", write)
    monkeypatch.setattr(export, "_difference", lambda *_: 0.0)
    settings = tmp_path / "processor_config.json"
    settings.write_bytes(bytes(5_000))
    full_disk()
    match = r"out: cannot be written \(File too large\); make room"
    refused(match, model, tokenizer, tmp_path / "out", "onnx", files=[settings])
    assert names(tmp_path) == {settings.name}
    full_disk(False)
    done = export_model(model, tokenizer, tmp_path / "out", "onnx", files=[settings])
    assert {"model.onnx", "tokenizer.json", settings.name} <= names(done.path)


def test_the_import_is_light():
    heavy = ["transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf"]
    code = f"import sys, fineprune.checkpoint.export; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
