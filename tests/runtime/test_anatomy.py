import pytest

from fineprune_runtime.anatomy import KINDS, by_kind, head_size_of, heads_of, place_of


@pytest.mark.parametrize(
    ("name", "stack", "layer", "kind"),
    [
        ("bert.encoder.layer.11.output.dense", "bert.encoder.layer", 11, "FFN out"),
        ("bert.encoder.layer.11.attention.output.dense", "bert.encoder.layer", 11, "O"),
        ("encoder.block.3.layer.1.DenseReluDense.wo", "encoder.block", 3, "FFN out"),
        ("layers.0.mlp.experts.7.down_proj", "layers", 0, "FFN out"),
        ("0.query", "", 0, "Q"),
        ("query", "", None, "Q"),
        ("pooler.dense", "pooler", None, "other"),
        ("my.blocks.2.mixing", "my.blocks", 2, "other"),
        ("my.blocks.2.unique", "my.blocks", 2, "other"),  # ends in que, not in a name of its own
        ("h.10", "h", None, "other"),  # a number that nothing follows is no layer's
        ("", "", None, "other"),
    ],
)
def test_names(name, stack, layer, kind):
    assert place_of(name) == (stack, layer, kind)
    assert kind in KINDS


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_attention_heads": 12, "num_key_value_heads": 2}, 12),
        ({"n_heads": 6}, 6),
        ({"n_head": 4}, 4),
        ({"num_heads": 8}, 8),
        ({"encoder_attention_heads": 4, "decoder_attention_heads": 4}, 4),
        ({"encoder_attention_heads": 4, "decoder_attention_heads": 8}, 0),
        ({"num_heads": [3, 6]}, 0),
        ({"num_attention_heads": None}, 0),
        ({"num_attention_heads": True}, 0),
        ({"num_attention_heads": -1}, 0),
        ({}, 0),
    ],
)
def test_heads_of_a_configuration(config: dict[str, object], heads: int) -> None:
    assert heads_of(config) == heads


class Module:
    attention_head_size = 4


@pytest.mark.parametrize(
    ("attention", "size"),
    [
        ({"head_dim": 128, "hidden_size": 64, "num_attention_heads": 2}, 128),
        ({"d_kv": 64}, 64),
        ({"head_dim": None, "attention_head_size": 8}, 8),
        ({"head_dim": 0}, None),
        ({"hidden_size": 64, "num_attention_heads": 2}, None),
        (Module(), 4),
        (object(), None),
    ],
)
def test_head_size_of_a_configuration_or_a_module(attention: object, size: int | None) -> None:
    assert head_size_of(attention) == size


def test_names_by_kind() -> None:
    assert by_kind("attention.q_lin", "ffn.lin2") == {"Q": "attention.q_lin", "FFN out": "ffn.lin2"}
    with pytest.raises(ValueError, match="q_proj is of kind Q, as is q_lin"):
        by_kind("q_lin", "q_proj")
    with pytest.raises(ValueError, match="norm is of kind other"):
        by_kind("norm")
