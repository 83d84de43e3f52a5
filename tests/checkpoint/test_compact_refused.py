"""Models that `save_compact` refuses in one line, since their files would not load to the same model."""

import pytest
import torch

from fineprune import FinepruneError, save_compact


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


def test_a_layer_that_is_in_two_places_is_named(make_pruned, tmp_path):
    model = make_pruned()
    layers = model.bert.encoder.layer
    layers[1] = layers[0]
    with pytest.raises(FinepruneError, match=r"bert.encoder.layer.0.* and bert.encoder.layer.1.* are one"):
        save_compact(model, tmp_path / "m")
