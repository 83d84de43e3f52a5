"""A model gets all of its weights from its files, which hold no other layer; else it is not opened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import call, tiny_bert

import fineprune
from fineprune import FinepruneError, PruningConfig, load
from fineprune.checkpoint.completeness import check_all, check_body
from fineprune.checkpoint.loading import open_model
from fineprune.checkpoint.prepared_models import engine_checkpoint

LAYER = "bert.encoder.layer.2.output.dense.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "bert"
    tiny_bert().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "bert"))


def weights(folder, change):
    """Replace the weights by `change(weights)`."""
    state = change(load_file(folder / "model.safetensors"))
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def settings(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def without(*names):
    return lambda state: {key: value for key, value in state.items() if not key.startswith(names)}


def renamed(old, new):
    return lambda state: {key.replace(old, new): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prefixed("_orig_mod."), r"41 of the 41 weights .* would be random.*save model\._orig_mod, not"),
        (prefixed("module."), r"41 of the 41 weights .*save model\.module, not"),
        (renamed("attention", "attn"), r"20 of the 41 weights .*have others, such as bert.*attn"),
        (without("classifier.bias"), r"1 of the 41 weights .*such as classifier\.bias; use a pre-trained"),
        (lambda state: state | {"classifier.bias": torch.ones(3)}, r"bias: the checkpoint holds \(3,\)"),
        (without("bert.pooler"), r"2 of the 41 weights .*such as bert\.pooler\.dense\.bias"),
        (lambda state: state | {LAYER: torch.ones(8, 16)}, "hold bert.encoder.layer.2.* a layer more than"),
        (lambda state: state | {"bert.x.mask_scores": torch.ones(2)}, "an older program's masks are not"),
    ],
)
def test_weights_that_are_not_the_models(change, message, folder):
    weights(folder, change)
    with pytest.raises(FinepruneError, match=message) as error:
        load(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_a_negative_number_of_heads(folder):
    settings(folder, num_attention_heads=-2)
    with pytest.raises(FinepruneError, match=r"config.json asks for -2 attention heads"):
        load(folder)


def test_a_head_that_is_random_by_request_is_no_model_of_the_folder(folder):
    with pytest.raises(FinepruneError, match=r"classifier.bias: the checkpoint .* \(2,\), .* takes \(5,\)"):
        load(folder, num_labels=5, ignore_mismatched_sizes=True)


def test_a_model_saved_before_finalize(folder):
    model = tiny_bert()
    pruner = fineprune.prepare(model, PruningConfig("magnitude", 0.5, warmup=0, cooldown=1), total_steps=2)
    with engine_checkpoint():  # as an older version wrote it
        model.save_pretrained(folder)
    with pytest.raises(FinepruneError, match=r"while it was being pruned.*call fineprune\.finalize"):
        load(folder)
    pruner.step()
    fineprune.finalize(model)
    model.save_pretrained(folder)
    assert torch.equal(load(folder).bert.pooler.dense.weight, model.bert.pooler.dense.weight)


@pytest.mark.parametrize(
    ("head", "change", "opened_as"),
    [
        ("ForSequenceClassification", lambda state: state, None),
        # a buffer of older files
        (
            "ForSequenceClassification",
            lambda state: state | {"bert.embeddings.position_ids": torch.zeros(1, 16, dtype=torch.int64)},
            None,
        ),
        # the pooler and the second head of the pre-trained models on the hub
        ("ForPreTraining", lambda state: state, "BertForMaskedLM"),
        ("ForTokenClassification", lambda s: s | {"bert.pooler.dense.weight": torch.zeros(8, 8)}, None),
        # sentence encoders are saved without the pooler that they do not use
        ("Model", without("pooler."), None),
    ],
)
def test_what_is_left_over_or_missing_without_harm(head, change, opened_as, folder):
    model = tiny_bert(head)
    model.save_pretrained(folder)
    weights(folder, change)
    if opened_as:
        settings(folder, architectures=[opened_as])
    opened = load(folder)
    theirs, ours = dict(opened.named_parameters()), dict(model.named_parameters())
    assert len(theirs) >= 20
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_fewer_layers_where_the_caller_asks_for_them(folder):
    assert len(load(folder, num_hidden_layers=1).bert.encoder.layer) == 1
    settings(folder, num_hidden_layers=1)
    with pytest.raises(FinepruneError, match=r"a layer more than config\.json has"):
        load(folder)


def test_a_compact_model_has_no_weight_more(make_pruned):
    model = make_pruned()
    info = {"missing_keys": set(), "mismatched_keys": [], "unexpected_keys": {"cls.bias"}}
    check_all(model, info, "m")
    with pytest.raises(FinepruneError, match=r"m: its files hold cls\.bias, for which a BertFor"):
        check_all(model, info, "m", exact=True)


def test_a_body_under_a_new_head():
    model = tiny_bert()
    info = {"missing_keys": {"classifier.weight"}, "mismatched_keys": [], "unexpected_keys": {"cls.bias"}}
    check_body(model, info, "m")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    with pytest.raises(FinepruneError, match=r"m: 1 of the \d+ weights of the bert model .*such as bert.enc"):
        check_body(model, info | {"missing_keys": {query}}, "m")
    surplus = info | {"unexpected_keys": {"encoder.layer.2.output.dense.weight"}}
    check_body(model, surplus, "m", cut=True)
    with pytest.raises(FinepruneError, match=r"m: its files hold encoder\.layer\.2\."):
        check_body(model, surplus, "m")


@pytest.mark.parametrize("command", ["predict", "inspect", "compact"])
def test_no_command_answers_with_random_weights(command, folder, tokenizer, tmp_path, capsys):
    weights(folder, prefixed("_orig_mod."))
    tokenizer.save_pretrained(folder)
    assert call(command, folder, *{"predict": ["a"], "compact": [tmp_path / "out"]}.get(command, [])) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_delta_of_a_base_with_other_names(make_pruned, base, tmp_path):
    weights(base, prefixed("_orig_mod."))
    with pytest.raises(FinepruneError, match=r"base: \d+ of the \d+ weights .* would be random"):
        fineprune.save_delta(make_pruned(), tmp_path / "delta", base)
    assert not (tmp_path / "delta").exists()


def test_a_model_of_the_hub(monkeypatch, folder):
    """The hub is a folder here."""
    weights(folder, renamed("attention", "attn"))
    monkeypatch.setattr("fineprune.checkpoint.loading.find_model", lambda source: str(folder))
    for kind in (None, transformers.BertForTokenClassification):
        with pytest.raises(FinepruneError, match=r"weights of the .* are not in its files"):
            open_model("a/model", hub=True, hub_class=kind)
