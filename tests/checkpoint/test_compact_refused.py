"""Models that `save_compact` refuses in one line, since their files would not load to the same model."""

from functools import partial

import pytest
import torch

from fineprune import FinepruneError, save_compact, save_delta


def test_compiled_elsewhere_or_with_adapters(make_dense, tmp_path):
    import peft

    model = make_dense()
    with pytest.raises(FinepruneError, match=r"compiled._orig_mod, and compile it afterwards"):
        save_compact(torch.compile(model, backend="eager"), tmp_path / "m")
    with pytest.raises(FinepruneError, match="no weights in memory"):
        save_compact(make_dense().to("meta"), tmp_path / "m")
    model.add_adapter(peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(FinepruneError, match=r"query: carries an adapter; merge \(merge_and_unload\)"):
        save_compact(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("save", [save_compact, partial(save_delta, base="nowhere")])
def test_a_type_in_the_place_of_the_tokenizer(make_pruned, tmp_path, save):
    with pytest.raises(FinepruneError, match=r"tokenizer='int8': give a tokenizer, .* values='int8'"):
        save(make_pruned(), tmp_path / "m", tokenizer="int8")
    assert not any(tmp_path.iterdir())


def test_a_layer_that_is_in_two_places_is_named(make_pruned, tmp_path):
    model = make_pruned()
    layers = model.bert.encoder.layer
    layers[1] = layers[0]
    with pytest.raises(FinepruneError, match=r"bert.encoder.layer.0.* and bert.encoder.layer.1.* are one"):
        save_compact(model, tmp_path / "m")
