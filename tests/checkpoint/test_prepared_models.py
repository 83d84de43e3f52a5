"""A prepared model is not written as a folder that would open with random weights."""

import copy

import pytest
import torch
from support import tiny_bert

from fineprune import FinepruneError, PruningConfig, finalize, prepare, save_compact
from fineprune.checkpoint.prepared_models import engine_checkpoint

TOTAL = 20


@pytest.fixture
def prepared():
    model = tiny_bert()
    pruner = prepare(model, PruningConfig("magnitude", density=0.25), TOTAL)
    for _ in range(TOTAL):
        pruner.step()
    return model


def test_a_prepared_model_is_refused_and_a_finalized_one_opens(prepared, tmp_path):
    place = tmp_path / "model"
    for part in (prepared, prepared.bert, copy.deepcopy(prepared)):
        with pytest.raises(FinepruneError, match=r"call fineprune\.finalize\(model\) first") as refused:
            part.save_pretrained(place)
        assert "\n" not in str(refused.value)
    with pytest.raises(FinepruneError, match="this model is still being pruned"):
        prepared.save_pretrained(place, state_dict=prepared.state_dict())
    assert not place.exists()
    finalize(prepared).save_pretrained(place)
    opened = type(prepared).from_pretrained(place)
    for name, tensor in prepared.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor)


def test_a_compact_copy_can_be_saved(prepared, tmp_path):
    assert save_compact(prepared, tmp_path / "small").density == pytest.approx(0.25, abs=0.01)
    with pytest.raises(FinepruneError, match="this model is still being pruned"):
        prepared.save_pretrained(tmp_path / "model")


def test_an_ordinary_state_and_the_checkpoint_of_an_engine_are_written(prepared, tmp_path):
    ordinary = finalize(copy.deepcopy(prepared)).state_dict()
    prepared.save_pretrained(tmp_path / "gathered", state_dict=ordinary)
    with engine_checkpoint():
        prepared.save_pretrained(tmp_path / "engine")
    assert (tmp_path / "gathered" / "model.safetensors").is_file()
    assert (tmp_path / "engine" / "model.safetensors").is_file()
