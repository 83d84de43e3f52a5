"""`fineprune.load` opens any model folder, or says what is wrong with it."""

import json

import pytest
import torch
from transformers import BertForSequenceClassification

import fineprune
from fineprune import FinepruneError
from fineprune.checkpoint.loading import load, to_dense
from fineprune.checkpoint.packing import PackedLinear
from fineprune.pruning.probe import outputs, probe_inputs


def test_plain_and_compact_folders(compact, make_pruned, same_weights, tmp_path):
    model = make_pruned()
    model.save_pretrained(tmp_path / "plain")
    for folder in (compact, str(compact), tmp_path / "plain"):
        loaded = load(folder)
        assert type(loaded) is BertForSequenceClassification
        assert not loaded.training
        assert same_weights(model, loaded)
    assert load(compact, dtype=torch.float16, device_map="cpu").dtype == torch.float16
    assert fineprune.load is load
    with pytest.raises(FinepruneError, match="is a whole model and needs no base"):
        load(compact, base=tmp_path / "plain")


def test_packed_it_is_small_and_answers_alike(make_pruned, architecture, same_answers, tmp_path):
    model = make_pruned(architecture)
    folder = fineprune.save_compact(model, tmp_path / "m").folder
    packed, dense = load(folder, packed=True), load(folder)
    kept = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    assert len(kept) == len(fineprune.summary(model).layers)
    assert all(layer.weight.dtype == torch.int8 and not layer.weight.requires_grad for layer in kept)
    assert same_answers(dense, packed)
    for dtype in (torch.float16, torch.bfloat16):
        assert same_answers(load(folder, dtype=dtype), load(folder, packed=True, dtype=dtype))
    sizes = [sum(entry.nbytes for entry in one.parameters()) for one in (dense, packed)]
    assert sizes[1] < sizes[0]


def test_a_packed_model_can_be_cast_and_keeps_its_blobs(compact, make_pruned, same_answers, tmp_path):
    model, packed = make_pruned(), load(compact, packed=True)
    assert same_answers(make_pruned().half(), packed.half())
    packed.float().save_pretrained(tmp_path / "again")
    name = "bert.encoder.layer.1.output.dense"
    assert torch.equal(load(tmp_path / "again").get_submodule(name).weight, model.get_submodule(name).weight)


def test_to_dense_writes_what_a_process_without_fineprune_opens(compact, make_pruned, run_python, tmp_path):
    model, loaded = make_pruned(), load(compact)
    assert to_dense(loaded) is loaded
    loaded.save_pretrained(tmp_path / "plain")
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"config.json", "model.safetensors"}
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    torch.save((probe_inputs(model), outputs(model, probe_inputs(model))), tmp_path / "expected.pt")
    done = run_python(
        "import sys, torch; from transformers import AutoModelForSequenceClassification as A;"
        "torch.set_num_threads(1); inputs, expected = torch.load(sys.argv[2]);"
        "print(torch.equal(A.from_pretrained(sys.argv[1])(**inputs).logits, expected[0]));"
        "print('fineprune' in sys.modules)",
        tmp_path / "plain",
        tmp_path / "expected.pt",
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_to_dense_of_others(compact, make_pruned):
    model = make_pruned()
    assert to_dense(model) is model
    packed = load(compact, packed=True)
    with pytest.raises(FinepruneError, match="load it without packed=True"):
        to_dense(packed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no model in it, config.json is missing"),
        ("{", "names no architecture"),
        ("[]", "names no architecture"),
        ("\xff", "names no architecture"),
        ("{}", "names no architecture"),
        ('{"architectures": []}', "names no architecture"),
        ('{"architectures": ["A", "B"]}', "names no architecture"),
        ('{"architectures": [7]}', "names no architecture"),
        ('{"architectures": ["BertForPruning"]}', "transformers has no 'BertForPruning'"),
        ('{"architectures": ["pipeline"]}', "'pipeline' is no model"),
        ('{"architectures": ["BertTokenizer"]}', "'BertTokenizer' is no model"),
    ],
)
def test_no_model(config, message, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(FinepruneError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_file_and_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file", "nothing"):
        with pytest.raises(FinepruneError, match=f"{place}: no model in it"):
            load(tmp_path / place)


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 50])
def test_plain_weights_that_are_damaged(content, make_pruned, tmp_path):
    make_pruned().save_pretrained(tmp_path)
    if content is None:
        (tmp_path / "model.safetensors").unlink()
    else:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FinepruneError, match="cannot load the model"):
        load(tmp_path)


def test_compact_weights_that_are_damaged(compact, change_json):
    change_json(compact / "config.json", vocab_size=60)
    with pytest.raises(FinepruneError, match=r"You set `ignore_mismatched_sizes`|the checkpoint holds"):
        load(compact)
    file = compact / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FinepruneError, match="cut off or damaged"):
        load(compact)
