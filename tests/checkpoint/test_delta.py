"""A delta and its base are the model again, to the bit where that is asked."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM, BertForSequenceClassification

import fineprune
from fineprune import FinepruneError, PruningConfig, load, prepare, save_compact, save_delta
from fineprune.checkpoint import delta, packing
from fineprune.pruning.finalizing import masked_modules
from fineprune_runtime import codec

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
FILES = {"config.json", "delta.safetensors", "fineprune.json"}


def stored(folder):
    return load_file(folder / delta.WEIGHTS)


def test_frozen_weights_are_masks_alone(make_pruned, base, same_weights, same_answers, tmp_path, names):
    model = make_pruned()
    saved = save_delta(model, tmp_path / "delta", base)
    assert names(tmp_path / "delta") == FILES
    masks = stored(saved.folder)
    assert len(masks) == 12
    assert all(packing.is_blob(tensor) for tensor in masks.values())
    assert {codec.read_header(tensor.numpy()).values for tensor in masks.values()} == {"mask"}
    # At density 0.1 a position takes 0.47 bit of each weight, 4096 weights 240 bytes; a header takes 40.
    assert sum(tensor.numel() for tensor in masks.values()) < 12 * 40 + 4096 // 8
    loaded = load(saved.folder)
    assert type(loaded) is BertForSequenceClassification
    assert not loaded.training
    assert same_weights(model, loaded)
    assert same_answers(model, loaded)
    assert saved.difference == 0
    assert saved.dense_bytes == 4 * model.num_parameters()
    assert saved.density == fineprune.summary(model).density
    about = json.loads((saved.folder / "fineprune.json").read_text())
    assert about["bytes"] == saved.bytes == (saved.folder / delta.WEIGHTS).stat().st_size
    assert about["base"]["name"] == str(base)
    assert set(about["base"]["tensors"]) == {name for name, _ in model.named_parameters()}


def test_a_base_that_was_named_from_here_is_found_from_elsewhere(
    make_pruned, base, same_weights, tmp_path, monkeypatch
):
    model = make_pruned()
    monkeypatch.chdir(Path(base).parent)
    saved = save_delta(model, tmp_path / "delta", Path(base).name)
    monkeypatch.chdir(tmp_path)
    assert same_weights(model, load(saved.folder))


def test_a_base_may_be_a_run(make_pruned, base, same_weights, tmp_path):
    shutil.copytree(base, tmp_path / "run" / "model")
    model = make_pruned()
    assert same_weights(model, load(save_delta(model, tmp_path / "delta", tmp_path / "run").folder))


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("layer.0.output.dense.weight", {"bert.encoder.layer.0.output.dense.weight"}),
        ("word_embeddings", {EMBEDDINGS}),
        ("classifier", {"classifier.weight"}),  # its bias is zero here and there
        ("LayerNorm.weight", {"bert.embeddings.LayerNorm.weight", *(
            f"bert.encoder.layer.{layer}.{part}output.LayerNorm.weight"
            for layer in (0, 1) for part in ("attention.", "")
        )}),
    ],
)  # fmt: skip
def test_what_changed_is_stored(
    part, changed, make_pruned, base, same_weights, same_answers, tmp_path, trained
):
    model = trained(make_pruned(), part)
    saved = save_delta(model, tmp_path / "delta", str(base))
    about = json.loads((saved.folder / "fineprune.json").read_text())
    assert {name for name, _ in model.named_parameters()} - set(about["base"]["tensors"]) == changed
    assert changed <= set(stored(saved.folder))
    assert same_weights(model, load(saved.folder))
    assert same_answers(model, load(saved.folder))
    assert saved.difference == 0


def test_every_architecture(
    architecture, make_dense, make_pruned, same_weights, same_answers, tmp_path, trained
):
    """Frozen and trained; ALBERT shares its layers, GPT-2 and T5 tie the head to the embeddings."""
    make_dense(architecture).save_pretrained(tmp_path / "base")
    sizes = []
    for model in (make_pruned(architecture), trained(make_pruned(architecture))):
        saved = save_delta(model, tmp_path / "delta", tmp_path / "base")
        sizes.append(saved.bytes)
        assert saved.dense_bytes == 4 * model.num_parameters()
        assert same_weights(model, load(saved.folder))
        assert same_answers(model, load(saved.folder))
    assert sizes[0] < sizes[1] < saved.dense_bytes


def test_tied_weights_stay_tied(make_dense, make_pruned, tmp_path, trained):
    make_dense("gpt2").save_pretrained(tmp_path / "base")
    model = trained(make_pruned("gpt2"), "wte")
    loaded = load(save_delta(model, tmp_path / "delta", tmp_path / "base").folder)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert "lm_head.weight" not in stored(tmp_path / "delta")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, make_pruned, base, same_weights, same_answers, tmp_path, trained):
    """The base is float32 on disk, and loaded in the model's type."""
    model = trained(make_pruned().to(dtype), "layer.1", "classifier")
    loaded = load(save_delta(model, tmp_path / "delta", base).folder)
    assert loaded.dtype == dtype
    assert same_weights(model, loaded)
    assert same_answers(model, loaded)


@pytest.mark.parametrize(("values", "most"), [("float16", 1e-3), ("bfloat16", 1e-2), ("int8", 2e-2)])
def test_rounded_values(values, most, make_pruned, base, tmp_path, trained):
    model = trained(make_pruned(), "layer.0", "word_embeddings", "classifier")
    saved = save_delta(model, tmp_path / "delta", base, values=values)
    loaded = load(saved.folder).state_dict()
    rounded = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    rounded = {f"{name}.weight" for name in rounded if "layer.0" in name}
    for name, tensor in model.state_dict().items():
        if name in rounded:
            worst = float((loaded[name] - tensor).abs().max() / tensor.abs().max())
            assert 0 < worst < most, name
            assert torch.equal(loaded[name] != 0, tensor != 0)
        else:
            assert torch.equal(loaded[name], tensor), name
    assert saved.bytes < save_delta(model, tmp_path / "exact", base).bytes
    with pytest.raises(FinepruneError, match="values='int9': did you mean int8"):
        save_delta(model, tmp_path / "no", base, values="int9")


def test_a_table_with_empty_rows_is_not_rounded(make_pruned, base, same_weights, tmp_path, trained):
    model = trained(make_pruned(), "word_embeddings")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[:25] = 0
    saved = save_delta(model, tmp_path / "delta", base, values="int8")
    assert packing.is_blob(stored(saved.folder)[EMBEDDINGS])
    assert same_weights(model, load(saved.folder))


def test_a_head_that_the_base_lacks(make_dense, make_pruned, same_weights, same_answers, tmp_path):
    """It is random in the base, and so nothing to build on, even where it is the same by chance or zero."""
    make_dense().bert.save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(make_pruned().state_dict()[name] if "layer" in name else parameter)
    for head in ("random", "zero"):
        if head == "zero":
            torch.nn.init.zeros_(model.classifier.weight)
        torch.manual_seed(3)
        saved = save_delta(
            model, tmp_path / head, tmp_path / "base", probe={"input_ids": torch.tensor([[1]])}
        )
        about = json.loads((saved.folder / "fineprune.json").read_text())
        assert not {"classifier.weight", "classifier.bias"} & set(about["base"]["tensors"])
        assert same_weights(model, load(saved.folder))


def test_a_base_with_another_head(make_pruned, same_weights, same_answers, tmp_path):
    model = make_pruned()
    larger = BertForMaskedLM(model.config)
    larger.bert.load_state_dict(
        {key: tensor for key, tensor in model.bert.state_dict().items() if "pooler" not in key}
    )
    larger.save_pretrained(tmp_path / "base")
    loaded = load(save_delta(model, tmp_path / "delta", tmp_path / "base").folder)
    assert type(loaded) is BertForSequenceClassification
    assert same_weights(model, loaded)
    assert same_answers(model, loaded)
    assert {name.split(".")[0] for name in stored(tmp_path / "delta") if "encoder" not in name} == {
        "bert",  # its pooler
        "classifier",
    }


def test_a_pruner_is_left_as_it_was(make_dense, base, same_answers, tmp_path):
    model = make_dense().train()
    pruner = prepare(model, PruningConfig("magnitude", density=0.1, warmup=0, cooldown=1), 2)
    pruner.step()
    pruner.step()
    before = copy.deepcopy(model.state_dict())
    saved = save_delta(pruner, tmp_path / "delta", base)
    assert model.training
    assert any(masked_modules(model))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert len(stored(saved.folder)) == 12  # a mask each
    assert same_answers(model, load(saved.folder))


def test_a_model_of_a_compact_folder_and_a_folder_of_a_delta(make_pruned, base, same_weights, tmp_path):
    compact = load(save_compact(make_pruned(), tmp_path / "compact").folder)
    saved = save_delta(compact, tmp_path / "delta", base)
    assert "quantization_config" not in json.loads((saved.folder / "config.json").read_text())
    again = load(saved.folder)
    assert same_weights(make_pruned(), again)
    assert same_weights(make_pruned(), load(save_compact(again, tmp_path / "again").folder))
    with pytest.raises(FinepruneError, match="load it without packed=True"):
        save_delta(load(tmp_path / "compact", packed=True), tmp_path / "no", base)


def test_a_model_that_no_probe_is_made_for(make_pruned, base, same_weights, tmp_path, monkeypatch, names):
    model = make_pruned()
    monkeypatch.setattr(BertForSequenceClassification, "main_input_name", "odd")
    with pytest.raises(FinepruneError, match=r"takes odd, and no example .* give one with probe="):
        save_delta(model, tmp_path / "delta", base)
    assert names(tmp_path) == {"base"}
    saved = save_delta(model, tmp_path / "delta", base, probe={"input_ids": torch.tensor([[1, 2]])})
    assert same_weights(model, load(saved.folder))


def test_the_tokenizer_comes_along(make_pruned, base, tmp_path):
    from transformers import AutoTokenizer, BertTokenizer

    words = BertTokenizer(vocab={word: index for index, word in enumerate(["[PAD]", "[UNK]", "a"])})
    saved = save_delta(make_pruned(), tmp_path / "delta", base, words)
    assert AutoTokenizer.from_pretrained(saved.folder)("a")["input_ids"] == words("a")["input_ids"]
