"""The peer CTranslate2: what it is given, what comes back, and models that it does not run."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from fineprune import FinepruneError
from fineprune.inference.bench import ctranslate2_peer
from fineprune.inference.bench.ctranslate2_peer import check, encoder_in_ctranslate2
from fineprune.inference.bench.peers import PEERS, missing
from fineprune.pruning.layout import layout_of
from fineprune.pruning.resizing import resize


@pytest.fixture
def encoder(monkeypatch):
    """`encoder(model)`: a CTranslate2 that answers by that model's encoder in torch; returns its settings."""

    def use(model):
        settings = {}

        class Encoder:
            def __init__(self, folder, **given):
                settings.update(given)

            def forward_batch(self, ids, lengths, types):
                mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]
                given = {} if types is None else {"token_type_ids": torch.tensor(types)}
                with torch.no_grad():
                    found = model.base_model(
                        torch.from_numpy(ids).long(), attention_mask=mask.long(), **given
                    )
                pooled = getattr(found, "pooler_output", None)
                pooled = None if pooled is None else pooled.numpy()
                return SimpleNamespace(last_hidden_state=found[0].numpy(), pooler_output=pooled)

        module = ModuleType("ctranslate2")
        module.Encoder, module.StorageView = Encoder, SimpleNamespace(from_array=np.asarray)
        monkeypatch.setitem(sys.modules, "ctranslate2", module)
        saved = SimpleNamespace(save=lambda folder: settings.update(folder=folder))
        monkeypatch.setattr(ctranslate2_peer, "_specification", lambda base: saved)
        return settings

    return use


@pytest.mark.parametrize("name", ["bert", "distilbert", "xlm-roberta"])
def test_the_head_reads_what_the_encoder_gives(name, make, texts, encoder, tmp_path):
    model, inputs = make(name), texts(2, 9, padded=3)
    inputs["attention_mask"] = inputs["attention_mask"].flip(0)
    settings = encoder(model)
    changed = encoder_in_ctranslate2(model, "int8", 3, tmp_path / "ct2")
    assert settings == {
        "folder": str(tmp_path / "ct2"),
        "device": "cpu",
        "intra_threads": 3,
        "compute_type": "int8",
    }
    with torch.inference_mode():
        expected, found = model(**inputs), changed(**inputs)
    for key, value in expected.items():
        assert torch.equal(found[key], value)


def test_token_types_are_handed_on(make, texts, encoder, tmp_path):
    model, inputs = make("bert"), texts(2, 9)
    inputs["token_type_ids"] = torch.tensor([[0] * 4 + [1] * 5] * 2)
    encoder(model)
    changed = encoder_in_ctranslate2(model, "float32", 1, tmp_path / "ct2")
    with torch.inference_mode():
        found = changed(**inputs).logits
        assert torch.equal(found, model(**inputs).logits)
        inputs["token_type_ids"] = torch.zeros(2, 9, dtype=torch.long)
        assert not torch.equal(found, model(**inputs).logits)


def test_padding_on_the_left_is_refused(make, texts, encoder, tmp_path):
    model, inputs = make("bert"), texts(2, 9)
    inputs["attention_mask"] = torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
    encoder(model)
    changed = encoder_in_ctranslate2(model, "float32", 1, tmp_path / "ct2")
    with pytest.raises(FinepruneError, match="padding on the right alone"):
        changed(**inputs)


def test_models_that_it_does_not_run(make):
    with pytest.raises(FinepruneError, match="electra: no encoder of CTranslate2, which has bert, camembert"):
        check(make("electra"))
    model = make("bert")
    check(model)
    resize(model, {layout_of(model)[1].attentions[0].name: 1})
    with pytest.raises(FinepruneError, match="heads were removed, and CTranslate2 takes 2 in every layer"):
        check(model)


def test_a_conversion_that_failed_fails_again(make, encoder, monkeypatch, tmp_path):
    model = make("bert")
    encoder(model)

    def fail(base):
        raise ValueError("no such activation")

    monkeypatch.setattr(ctranslate2_peer, "_specification", fail)
    for kind in ("float32", "int8"):  # the second finds what the first left
        with pytest.raises(ValueError, match="no such activation"):
            encoder_in_ctranslate2(model, kind, 1, tmp_path / "ct2")


def test_it_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    assert missing(PEERS["CTranslate2 int8"]) == "ctranslate2 not installed"
