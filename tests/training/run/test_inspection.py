"""What is said of a model: its layers as bars, what is left of them, and the line to paste."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fineprune import FinepruneError
from fineprune.pruning.summary import MatrixSummary, Summary
from fineprune.training.run.inspection import Flops, Inspection, Latency, LayerDensity, inspect_folder

BENCH = {
    "file_bytes": 1000,
    "batch": 1,
    "length": 128,
    "machine": {"threads": 2, "processor": "A processor"},
    "rows": [
        {
            "peer": peer,
            "model": model,
            "wrong": wrong,
            "timing": {"milliseconds": 8 / ratio, "ratio": ratio, "low": ratio, "high": ratio},
        }
        for peer, model, wrong, ratio in (
            ("torch", None, False, 1.0),
            ("engine int8", None, True, 8.0),
            ("engine float32", None, False, 2.0),
            ("OpenVINO", None, False, 2.5),
            ("engine int8", "x", False, 16.0),
        )
    ],
}


# -- the line ---------------------------------------------------------------------------------


def test_the_line_to_paste():
    left = Summary((MatrixSummary("a", (10, 100), 200, 1000),), 5000)
    layers = (LayerDensity("encoder.layer", 0, 200, 1000, *[None] * 4),)
    found = Inspection("mine", left, layers, 2_540_000, True, None, None, None, Flops(128, 9, 9, 9))
    said = "mine: 200 of 1,000 weights kept (20.00%), 4,200 of all 5,000 parameters (84.00%); 2.5 MB on disk"
    assert found.line == f"{said}; latency: not measured"
    latency = Latency(4.0, 2.0, "engine float32", 1, 128, 1, "A processor")
    assert replace(found, latency=latency).line == (
        f"{said}; latency: 4.00 ms, 2.00 x torch's speed "
        "(engine float32, 1 x 128 tokens, 1 thread of A processor)"
    )
    assert replace(found, no_latency="it is of other weights").line == (
        f"{said}; latency: not measured (it is of other weights)"
    )


def test_operations_that_are_left():
    dense = "0.4 GFLOPs for a text of 128 tokens"
    assert str(Flops(128, 400_000_000, 400_000_000, 400_000_000)) == dense
    zeros = Flops(128, 400_000_000, 400_000_000, 50_000_000)
    assert str(zeros) == f"{dense}, 0.05 without those by zeros"
    shrunk = Flops(128, 1_600_000_000, 400_000_000, 400_000_000)
    assert str(shrunk) == f"{dense}, 25.0% of the 1.6 before its matrices were made smaller"


# -- folders ----------------------------------------------------------------------------------


def test_a_run(copied):
    found = inspect_folder(copied)
    # 2 blocks of 4 8x8 and 2 8x16 matrices, a quarter of each
    assert [(one.stack, one.layer, one.kept, one.total) for one in found.layers] == [
        ("bert.encoder.layer", 0, 128, 512),
        ("bert.encoder.layer", 1, 128, 512),
    ]
    assert [(one.heads, one.neurons) for one in found.layers] == [(2, 16)] * 2
    results = json.loads((copied / "results.json").read_text())
    assert found.packed_bytes == results["packed_bytes"]
    assert found.bytes == (copied / "model" / "model.safetensors").stat().st_size
    assert found.latency is None
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["scores"] == results["scores"]
    assert [block["density"] for block in told["blocks"]] == [0.25, 0.25]
    assert told["line"] == found.line
    assert (told["latency"], told["packed"]) == (None, False)


def test_what_is_left_of_a_layer(copied):
    """Heads and neurons are those of the model in the folder."""
    from safetensors.torch import load_file, save_file

    path = copied / "model" / "model.safetensors"
    state = {name: torch.ones_like(tensor) for name, tensor in load_file(path).items()}
    state["bert.encoder.layer.0.attention.self.value.weight"][:4] = 0  # the first of two heads
    state["bert.encoder.layer.1.intermediate.dense.weight"][3:8] = 0
    save_file(state, path, {"format": "pt"})
    first, second = inspect_folder(copied).layers
    assert (first.heads_left, first.neurons_left) == (1, 16)
    assert (second.heads_left, second.neurons_left) == (2, 11)
    assert (first.kept, second.kept) == (512 - 32, 512 - 40)


@pytest.mark.parametrize(
    ("change", "peer", "why"),
    [
        ({}, "engine float32", None),  # not OpenVINO, which is faster; not what is wrong
        ({"rows": BENCH["rows"][:2]}, "torch", None),
        ({"rows": BENCH["rows"][1:2]}, None, "bench.json has no right answer"),
        ({"rows": 7}, None, "bench.json cannot be read: "),
        ({"rows": [7]}, None, "bench.json cannot be read: "),
        ({"machine": None}, None, "bench.json cannot be read: "),
        ({"file_bytes": 7}, None, "bench.json is of other weights"),
        (None, None, "bench.json cannot be read: "),
    ],
)
def test_latency(copied, change, peer, why):
    size = (copied / "model" / "model.safetensors").stat().st_size
    text = "{" if change is None else json.dumps(BENCH | {"file_bytes": size} | change)
    (copied / "bench.json").write_text(text)
    found = inspect_folder(copied)
    assert (found.latency and found.latency.peer) == peer
    assert (found.no_latency or "").startswith(why or "")
    assert (found.no_latency is None) == (why is None)
    if change == {}:
        assert found.latency == Latency(4.0, 2.0, "engine float32", 1, 128, 2, "A processor")
        assert found.to_dict()["latency"]["milliseconds"] == 4.0


def test_results_of_an_older_version(copied):
    path = copied / "results.json"
    results = json.loads(path.read_text())
    del results["packed_bytes"], results["dense_bytes"]
    path.write_text(json.dumps(results))
    assert inspect_folder(copied).packed_bytes is None


@pytest.mark.parametrize("change", [{"packed_bytes": 7}, {"scores": 7}, {"density": "x"}, {"steps": None}])
def test_broken_results_are_one_line(copied, change):
    path = copied / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FinepruneError, match=r"results.json: not the results of a run") as error:
        inspect_folder(copied)
    assert "\n" not in str(error.value)


SMALL = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "settings", "layers"),
    [
        ("GPT2LMHeadModel", {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2}, [(2, 32)] * 2),
        (
            "T5ForConditionalGeneration",
            {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
            [(2, 16), (4, 16)],  # the decoder's has two attentions
        ),
        (
            "ViTForImageClassification",
            SMALL | {"num_hidden_layers": 2, "image_size": 8, "patch_size": 4},
            [(2, 16)] * 2,
        ),
        (
            "BartForSequenceClassification",
            {
                "vocab_size": 20,
                "d_model": 8,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 4,  # which the places of the matrices do not say
                "encoder_ffn_dim": 16,
                "decoder_ffn_dim": 16,
            },
            [(None, 16), (None, 16)],
        ),
        (
            "XLNetForSequenceClassification",  # its attention has no linear layers
            {"vocab_size": 20, "d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 16},
            [(None, 16)] * 2,
        ),
    ],
)
def test_other_models(tmp_path, kind, settings, layers):
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, kind)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 0}
    made(made.config_class(**settings, **(ids if "vocab_size" in settings else {}))).save_pretrained(tmp_path)
    found = inspect_folder(Path(tmp_path))
    assert [(one.heads, one.neurons) for one in found.layers] == layers
    assert all(one.density == 1 for one in found.layers)
    assert found.name == tmp_path.name


def test_names_that_are_not_known(copied, monkeypatch):
    from fineprune.pruning.anatomy import Place
    from fineprune.training.run import inspection

    monkeypatch.setattr("fineprune.pruning.anatomy.place_of", lambda name: Place("", None, "other"))
    (found,) = inspection.inspect_folder(copied).layers
    assert (found.layer, found.kept, found.total, found.heads, found.neurons) == (None, 256, 1024, None, None)
