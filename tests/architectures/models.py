"""Tiny models of random weights, one for each architecture, and what is expected of them, written by hand.

`table.py` makes docs/architectures.md of it; `test_architectures.py` checks that it is so.
"""

import re
from itertools import product
from typing import Any, NamedTuple

import torch

from fineprune import PruningConfig, finalize, prepare

BERT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
DISTIL = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 50,
    "d_model": 16,
    **{f"{stack}_layers": 2 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 32 for stack in ("encoder", "decoder")},
    "max_position_embeddings": 32,
}
WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [5, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "apply_spec_augment": False,
}
POOLFORMER = {
    "num_encoder_blocks": 2,
    "depths": [2, 2],
    "hidden_sizes": [16, 16],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "padding": [1, 1],
    "image_size": 16,
    "layer_scale_init_value": 1.0,  # its 1e-5 would leave the blocks without a say in the answer
}

BERT_LAYER = (
    "attention.self.{query,key,value}",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LLAMA_LAYER = ("self_attn.{q,k,v,o}_proj", "mlp.{gate,up,down}_proj")

ENGINE = ("whole", "layer by layer", "no")


class Architecture(NamedTuple):
    """A class of transformers, how to make a tiny one, and what becomes of it."""

    kind: str
    auto: str
    """The Auto class that opens it, without "AutoModelFor"."""

    settings: dict[str, Any]
    pruned: dict[str, tuple[str, ...]]
    """The pruned matrices: where the layers are, and the names in each; {a,b} stands for a and b."""

    weights: int
    """Of those matrices."""

    engine: str
    """What `accelerate` does with it: one of `ENGINE`."""

    special: str = ""
    tied: tuple[tuple[str, ...], ...] = ()
    """Parameters that are one and the same, under several names."""


ARCHITECTURES: dict[str, Architecture] = {
    "BERT": Architecture(
        "BertForSequenceClassification",
        "SequenceClassification",
        BERT,
        {"bert.encoder.layer.{0,1}": BERT_LAYER},
        2 * (4 * 16 * 16 + 2 * 16 * 32),
        "whole",
    ),
    "RoBERTa": Architecture(
        "RobertaForMaskedLM",
        "MaskedLM",
        BERT,
        {"roberta.encoder.layer.{0,1}": BERT_LAYER},
        2 * (4 * 16 * 16 + 2 * 16 * 32),
        "whole",
        "the LM head is tied to the words' table, and neither is pruned",
        (("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),),
    ),
    "DistilBERT": Architecture(
        "DistilBertForSequenceClassification",
        "SequenceClassification",
        DISTIL,
        {"distilbert.transformer.layer.{0,1}": ("attention.{q,k,v,out}_lin", "ffn.{lin1,lin2}")},
        2 * (4 * 16 * 16 + 2 * 16 * 32),
        "whole",
    ),
    "ELECTRA": Architecture(
        "ElectraForSequenceClassification",
        "SequenceClassification",
        {**BERT, "embedding_size": 8},
        {"electra.encoder.layer.{0,1}": BERT_LAYER},
        2 * (4 * 16 * 16 + 2 * 16 * 32),
        "whole",
        "the projection of its narrow embeddings lies outside the layers",
    ),
    "ALBERT": Architecture(
        "AlbertForSequenceClassification",
        "SequenceClassification",
        {**BERT, "embedding_size": 8},
        {
            "albert.encoder.albert_layer_groups.0.albert_layers.0": (
                "attention.{query,key,value,dense}",
                "{ffn,ffn_output}",
            )
        },
        4 * 16 * 16 + 2 * 16 * 32,
        "layer by layer",
        "one layer, which all places share: one mask, counted once",
    ),
    "DeBERTa-v2": Architecture(
        "DebertaV2ForSequenceClassification",
        "SequenceClassification",
        {**BERT, **RELATIVE},
        {
            "deberta.encoder.layer.{0,1}": (
                "attention.self.{query,key,value,pos_query,pos_key}_proj",
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            )
        },
        2 * (6 * 16 * 16 + 2 * 16 * 32),
        "whole",
        "projections of relative positions",
    ),
    "DeBERTa-v3": Architecture(
        "DebertaV2ForSequenceClassification",
        "SequenceClassification",
        {**BERT, **RELATIVE, "share_att_key": True},
        {
            "deberta.encoder.layer.{0,1}": (
                "attention.self.{query,key,value}_proj",
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            )
        },
        2 * (4 * 16 * 16 + 2 * 16 * 32),
        "whole",
        "`share_att_key`: relative positions go through the words' projections, whose masks hold there too",
    ),
    "MPNet": Architecture(
        "MPNetForSequenceClassification",
        "SequenceClassification",
        BERT,
        {"mpnet.encoder.layer.{0,1}": ("attention.attn.{q,k,v,o}", "intermediate.dense", "output.dense")},
        2 * (4 * 16 * 16 + 2 * 16 * 32),
        "whole",
        "a bias of attention by distance, one table for all layers, which is not pruned",
    ),
    "ModernBERT": Architecture(
        "ModernBertForSequenceClassification",
        "SequenceClassification",
        BERT,
        {"model.layers.{0,1}": ("attn.{Wqkv,Wo}", "mlp.{Wi,Wo}")},
        2 * (4 * 16 * 16 + 3 * 16 * 32),
        "whole",
        "fused: `Wqkv` is three matrices, and `Wi` both of a gated feed-forward",
    ),
    "GPT-2": Architecture(
        "GPT2LMHeadModel",
        "CausalLM",
        GPT2,
        {"transformer.h.{0,1}": ("attn.{c_attn,c_proj}", "mlp.{c_fc,c_proj}")},
        2 * (4 * 16 * 16 + 2 * 16 * 64),
        "layer by layer",
        "Conv1D, whose weight is (in, out); `c_attn` is three matrices; tied LM head",
        (("transformer.wte.weight", "lm_head.weight"),),
    ),
    "Llama": Architecture(
        "LlamaForCausalLM",
        "CausalLM",
        {**BERT, "num_key_value_heads": 1},
        {"model.layers.{0,1}": LLAMA_LAYER},
        2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 32),
        "layer by layer",
        "grouped queries, gated feed-forward",
    ),
    "Qwen2": Architecture(
        "Qwen2ForCausalLM",
        "CausalLM",
        {**BERT, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"model.layers.{0,1}": LLAMA_LAYER},
        2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 32),
        "layer by layer",
        "grouped queries, gated feed-forward; tied LM head, as in its small sizes",
        (("model.embed_tokens.weight", "lm_head.weight"),),
    ),
    "Qwen3": Architecture(
        "Qwen3ForCausalLM",
        "CausalLM",
        {**BERT, "num_key_value_heads": 1, "head_dim": 16},
        {"model.layers.{0,1}": LLAMA_LAYER},
        2 * (2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 32),
        "layer by layer",
        "grouped queries with heads of their own size, gated feed-forward",
    ),
    "T5": Architecture(
        "T5ForConditionalGeneration",
        "Seq2SeqLM",
        {**T5, "tie_word_embeddings": True},
        {
            "encoder.block.{0,1}.layer": ("0.SelfAttention.{q,k,v,o}", "1.DenseReluDense.{wi,wo}"),
            "decoder.block.{0,1}.layer": (
                "0.SelfAttention.{q,k,v,o}",
                "1.EncDecAttention.{q,k,v,o}",
                "2.DenseReluDense.{wi,wo}",
            ),
        },
        2 * (12 * 16 * 16 + 4 * 16 * 32),
        "layer by layer",
        "encoder and decoder; one table for both, tied LM head",
        (
            (
                "shared.weight",
                "encoder.embed_tokens.weight",
                "decoder.embed_tokens.weight",
                "lm_head.weight",
            ),
        ),
    ),
    "T5 v1.1": Architecture(
        "T5ForConditionalGeneration",
        "Seq2SeqLM",
        {**T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        {
            "encoder.block.{0,1}.layer": ("0.SelfAttention.{q,k,v,o}", "1.DenseReluDense.{wi_0,wi_1,wo}"),
            "decoder.block.{0,1}.layer": (
                "0.SelfAttention.{q,k,v,o}",
                "1.EncDecAttention.{q,k,v,o}",
                "2.DenseReluDense.{wi_0,wi_1,wo}",
            ),
        },
        2 * (12 * 16 * 16 + 6 * 16 * 32),
        "layer by layer",
        "gated feed-forward; the LM head has a matrix of its own, which is not pruned",
    ),
    "BART": Architecture(
        "BartForConditionalGeneration",
        "Seq2SeqLM",
        BART,
        {
            "model.encoder.layers.{0,1}": ("self_attn.{q,k,v,out}_proj", "{fc1,fc2}"),
            "model.decoder.layers.{0,1}": ("{self_attn,encoder_attn}.{q,k,v,out}_proj", "{fc1,fc2}"),
        },
        2 * (12 * 16 * 16 + 4 * 16 * 32),
        "layer by layer",
        "encoder and decoder; one table for both, tied LM head",
        (
            (
                "model.shared.weight",
                "model.encoder.embed_tokens.weight",
                "model.decoder.embed_tokens.weight",
                "lm_head.weight",
            ),
        ),
    ),
    "ViT": Architecture(
        "ViTForImageClassification",
        "ImageClassification",
        {**BERT, "image_size": 16, "patch_size": 8},
        {"vit.layers.{0,1}": ("attention.{q,k,v,o}_proj", "mlp.{fc1,fc2}")},
        2 * (4 * 16 * 16 + 2 * 16 * 32),
        "layer by layer",
        "the convolution that makes patches lies outside the layers",
    ),
    "Wav2Vec2": Architecture(
        "Wav2Vec2ForSequenceClassification",
        "AudioClassification",
        WAV2VEC2,
        {
            "wav2vec2.encoder.layers.{0,1}": (
                "attention.{q,k,v,out}_proj",
                "feed_forward.{intermediate,output}_dense",
            )
        },
        2 * (4 * 16 * 16 + 2 * 16 * 32),
        "layer by layer",
        "the convolutions before the layers, and that of positions with its own parametrization, stay",
    ),
    "SqueezeBERT": Architecture(
        "SqueezeBertForSequenceClassification",
        "SequenceClassification",
        {**BERT, "embedding_size": 16},
        {
            "transformer.encoder.layers.{0,1}": (
                "attention.{query,key,value}",
                "post_attention.conv1d",
                "intermediate.conv1d",
                "output.conv1d",
            )
        },
        2 * (3 * 16 * 4 + 16 * 16 + 32 * 4 + 16 * 8),
        "no",
        "1x1 convolutions over tokens, most of them in 4 groups",
    ),
    "PoolFormer": Architecture(
        "PoolFormerForImageClassification",
        "ImageClassification",
        POOLFORMER,
        {"poolformer.encoder.block.{0,1}.{0,1}": ("output.{conv1,conv2}",)},
        4 * 2 * 16 * 64,
        "no",
        "a feed-forward of 1x1 convolutions over pixels",
    ),
}


def expanded(pattern: str) -> list[str]:
    """The names that a pattern stands for: "a.{b,c}" for a.b and a.c."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    return ["".join(names) for names in product(*parts)]


def pruned_matrices(name: str) -> list[str]:
    """The dotted names of the matrices, as written above."""
    return [
        matrix
        for where, names in ARCHITECTURES[name].pruned.items()
        for end in names
        for matrix in expanded(f"{where}.{end}")
    ]


def make(name: str) -> Any:
    """Always the same weights, spread wide, so that the layers have a say in the answer."""
    return made(ARCHITECTURES[name].kind, ARCHITECTURES[name].settings)


def made(name: str, sizes: dict[str, Any]) -> Any:
    """A model of a class of transformers, as `make` makes it."""
    import transformers

    kind = getattr(transformers, name)
    settings = {
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
    }
    torch.manual_seed(0)
    return kind(kind.config_class(**(settings | sizes))).eval()


def labels(name: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model's loss compares its answers with."""
    if ARCHITECTURES[name].auto.endswith("LM"):
        return inputs["input_ids"]
    return torch.arange(len(next(iter(inputs.values())))) % 2


def pruned(name: str, density: float = 0.1) -> Any:
    """A finalized model, by size of the weights and without training."""
    model = make(name)
    prepare(model, PruningConfig("magnitude", density, warmup=0, cooldown=1), 2).step()
    return finalize(model).eval()
