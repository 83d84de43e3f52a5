import numpy as np
import pytest
from transformers import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from fineprune_runtime import EngineError
from fineprune_runtime.rotary import rotations

CONFIG = {"model_type": "modernbert", "hidden_size": 16, "num_attention_heads": 2, "local_attention": 7}


def rotation(**settings):
    rotation = rotations(CONFIG | settings, 4)
    return [rotation(index) for index in range(4)]


def test_every_third_layer_sees_all_tokens():
    assert [each.window for each in rotation()] == [None, 3, 3, None]
    assert [each.window for each in rotation(global_attn_every_n_layers=2)] == [None, 3, None, 3]
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    assert [each.window for each in rotation(layer_types=kinds, local_attention=128)] == [64, 64, 64, None]
    assert rotations({"model_type": "bert"}, 10**20)(0) == (None, None)  # and nothing as long as that is made


def test_frequencies_by_hand():
    # Of heads of 8: 160,000 and 10,000 to the power of 0, -1/4, -1/2 and -3/4.
    every, near = rotation()[:2]
    assert every.frequencies == pytest.approx([1, 0.05, 0.0025, 0.000125])
    assert near.frequencies == pytest.approx([1, 0.1, 0.01, 0.001])
    assert every.frequencies.dtype == np.float32
    older = rotation(global_rope_theta=16.0, local_rope_theta=81)
    assert older[0].frequencies == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8])
    assert older[1].frequencies == pytest.approx([1, 1 / 3, 1 / 9, 1 / 27])
    newer = {"full_attention": {"rope_type": "default", "rope_theta": 16.0}, "sliding_attention": None}
    assert rotation(rope_parameters=newer)[0].frequencies == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8])
    assert rotation(rope_parameters=newer)[1].frequencies == pytest.approx([1, 0.1, 0.01, 0.001])


def test_frequencies_are_those_of_torch():
    config = ModernBertConfig(hidden_size=128, num_attention_heads=2, num_hidden_layers=2)
    torch = ModernBertRotaryEmbedding(config)
    every, near = map(rotations(config.to_dict(), 2), range(2))
    assert every.frequencies == pytest.approx(torch.full_attention_inv_freq.numpy(), rel=2e-7)
    assert near.frequencies == pytest.approx(torch.sliding_attention_inv_freq.numpy(), rel=2e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "yarn"}},
            "rope_parameters in config.json is .*yarn.*has the rope_type",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear"}}},
            "'linear'.*run this model with torch",
        ),
        ({"rope_parameters": "default"}, "rope_parameters in config.json is 'default'"),
        ({"rope_parameters": {"full_attention": "default"}}, "rope_parameters in config.json is .*'default'"),
        ({"global_rope_theta": 0}, "global_rope_theta in config.json is 0, expected a number above 0"),
        ({"local_rope_theta": None}, "local_rope_theta in config.json is None"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": "1"}}},
            "global_rope_theta in config.json is '1'",
        ),
        ({"local_attention": 0}, "local_attention in config.json is 0, expected a whole number"),
        (
            {"layer_types": [["full_attention"]] * 4},
            "layer_types in config.json is .*expected 4 of full_attention",
        ),
        (
            {"layer_types": ["full_attention"] * 3},
            "layer_types in config.json is .*expected 4 of full_attention",
        ),
        ({"layer_types": ["chunked"] * 4}, r"layer_types in config.json is \['chunked'"),
        ({"layer_types": 3}, "layer_types in config.json is 3"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers in config.json is 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(EngineError, match=message):
        rotation(**settings)
