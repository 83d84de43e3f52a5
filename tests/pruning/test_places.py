"""Places of real names: every matrix that is pruned of the architectures that people use."""

import pytest
import transformers

from fineprune.pruning.places import KINDS, place_of
from fineprune.pruning.targets import find_targets

SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
BART = {f"{stack}_{name}": 2 for stack in ("encoder", "decoder") for name in ("layers", "attention_heads")}
WAV2VEC2 = {"conv_dim": (4, 4), "conv_stride": (2, 2), "conv_kernel": (2, 2), "num_conv_pos_embeddings": 4}

USUAL = ["FFN in", "FFN out", "K", "O", "Q", "V"]
FUSED = ["FFN in", "FFN out", "O", "QKV"]
GATED = sorted([*USUAL, "FFN in"])
CROSS = sorted([*USUAL, "K", "O", "Q", "V"])

# Model, settings, and what each layer of each stack has.
MODELS = {
    "Bert": ("ForSequenceClassification", SMALL, {"bert.encoder.layer": USUAL}),
    "Bert, a decoder": (
        "LMHeadModel",
        SMALL | {"is_decoder": True, "add_cross_attention": True},
        {"bert.encoder.layer": CROSS},
    ),
    "Roberta": ("ForSequenceClassification", SMALL, {"roberta.encoder.layer": USUAL}),
    "DistilBert": (
        "ForSequenceClassification",
        {"vocab_size": 20, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
        {"distilbert.transformer.layer": USUAL},
    ),
    "Electra": ("ForSequenceClassification", SMALL, {"electra.encoder.layer": USUAL}),
    "Albert": ("ForSequenceClassification", SMALL, {"albert.encoder.albert_layer_groups": USUAL}),
    "DebertaV2": ("ForSequenceClassification", SMALL, {"deberta.encoder.layer": USUAL}),
    "DebertaV2, relative": (
        "ForSequenceClassification",
        SMALL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        {"deberta.encoder.layer": sorted([*USUAL, "K", "Q"])},
    ),
    "MPNet": ("ForSequenceClassification", SMALL, {"mpnet.encoder.layer": USUAL}),
    "ModernBert": ("ForSequenceClassification", SMALL | IDS, {"model.layers": FUSED}),
    "GPT2": (
        "LMHeadModel",
        {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0},
        {"transformer.h": FUSED},
    ),
    "Llama": ("ForCausalLM", SMALL, {"model.layers": GATED}),
    "Qwen2": ("ForCausalLM", SMALL | {"num_key_value_heads": 1}, {"model.layers": GATED}),
    "Qwen3": ("ForCausalLM", SMALL | {"num_key_value_heads": 1, "head_dim": 4}, {"model.layers": GATED}),
    "Phi3": ("ForCausalLM", SMALL | IDS, {"model.layers": FUSED}),
    "GPTNeoX": ("ForCausalLM", SMALL, {"gpt_neox.layers": FUSED}),
    "T5": ("ForConditionalGeneration", T5, {"encoder.block": USUAL, "decoder.block": CROSS}),
    "T5, gated": (
        "ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu"},
        {"encoder.block": GATED, "decoder.block": sorted([*CROSS, "FFN in"])},
    ),
    "Bart": (
        "ForSequenceClassification",
        {"vocab_size": 20, "d_model": 8, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, **BART},
        {"model.encoder.layers": USUAL, "model.decoder.layers": CROSS},
    ),
    "ViT": ("ForImageClassification", SMALL | {"image_size": 8, "patch_size": 4}, {"vit.layers": USUAL}),
    "Wav2Vec2": (
        "ForSequenceClassification",
        SMALL | WAV2VEC2 | {"num_conv_pos_embedding_groups": 2},
        {"wav2vec2.encoder.layers": USUAL},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_target_has_its_place(name):
    head, settings, expected = MODELS[name]
    kind = name.partition(",")[0]
    if "max_position_embeddings" in settings and kind in ("ViT", "Wav2Vec2"):
        settings = {key: value for key, value in settings.items() if key != "max_position_embeddings"}
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}{head}")(config)
    found: dict[tuple[str, int | None], list[str]] = {}
    for target in find_targets(model):
        stack, layer, what = place_of(target)
        found.setdefault((stack, layer), []).append(what)
    numbers = [0] if kind == "Albert" else [0, 1]
    assert {place: sorted(kinds) for place, kinds in found.items()} == {
        (stack, number): kinds for stack, kinds in expected.items() for number in numbers
    }


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
