"""Shrunk models that open anywhere: the configuration has the new sizes."""

import forked
import pytest
import torch
from architectures.shrinking import empty, with_heads

from fineprune import shrink
from fineprune.pruning.layout import layout_of
from fineprune.pruning.ordinary import Edits
from fineprune.pruning.origin import origin_of
from fineprune.pruning.probe import outputs, probe_inputs

OPENED = """
import sys, torch, transformers
folder, kind = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder).eval()
with torch.no_grad():
    answers = model(**torch.load(folder + "/inputs.pt"))
assert torch.equal(answers.logits, torch.load(folder + "/logits.pt")), "other answers"
assert "fineprune" not in sys.modules
"""


def upper_half(_layer, _kind, units):
    return list(range(units // 2, units))


def neurons_only(layer, kind, units):
    return upper_half(layer, kind, units) if kind == "neurons" else list(range(units))


@pytest.mark.parametrize(
    ("name", "choose", "changes"),
    [
        ("BERT", neurons_only, {"intermediate_size": 16}),
        ("GPT-2", neurons_only, {"n_inner": 32}),
        ("BART", neurons_only, {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}),
        ("T5", neurons_only, {"d_ff": 16}),
        ("DistilBERT", neurons_only, {"hidden_dim": 16}),
        ("Falcon", neurons_only, {"ffn_hidden_size": 32}),
        (
            "Llama",
            upper_half,
            {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1},
        ),
        (
            "Phi-3",
            upper_half,
            {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4},
        ),
        ("ViT", upper_half, {"intermediate_size": 16, "num_attention_heads": 2, "head_dim": 4}),
    ],
)
def test_it_opens_where_fineprune_was_never_imported(name, choose, changes, tmp_path):
    model = with_heads(name)
    before = model.config.to_dict()
    empty(model, choose, ("read",))
    assert shrink(model).ordinary
    after = model.config.to_dict()
    assert {key: after[key] for key in after if after[key] != before.get(key)} == changes
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    inputs = probe_inputs(model)
    torch.save(inputs, tmp_path / "inputs.pt")
    torch.save(outputs(model, inputs)[0], tmp_path / "logits.pt")
    done = forked.python(OPENED, tmp_path, type(model).__name__)
    assert done.returncode == 0, done.stderr


def test_unequal_widths_leave_the_configuration_alone():
    model = with_heads("Llama")
    before = model.config.to_dict()
    empty(model, lambda layer, kind, units: list(range(layer, units)), ("read",))
    assert not shrink(model).ordinary
    assert model.config.to_dict() == before | {
        "quantization_config": model.config.quantization_config.to_dict()
    }
    assert not origin_of(model).ordinary


def test_equal_neurons_and_unequal_heads_too():
    model = with_heads("Llama")
    before = model.config.to_dict()
    empty(model, lambda layer, kind, units: list(range(1 if kind == "neurons" else layer, units)), ("read",))
    assert not shrink(model).ordinary
    assert model.config.to_dict() == before | {
        "quantization_config": model.config.quantization_config.to_dict()
    }


def test_edits_are_taken_back():
    model = with_heads("ViT")
    empty(model, upper_half, ("read",))
    before = dict(vars(model.config))
    shrink(model)
    assert vars(model.config) != before
    edits = Edits(model)
    model.config.num_attention_heads, model.config.intermediate_size = 4, 32
    del model.config.head_dim
    edits.apply(layout_of(model))
    assert (edits.ordinary, model.config.head_dim) == (True, 4)
    edits.undo()
    assert vars(model.config) == before


def test_without_a_configuration():
    edits = Edits(torch.nn.Linear(2, 2))
    edits.apply([])
    assert not edits.ordinary
