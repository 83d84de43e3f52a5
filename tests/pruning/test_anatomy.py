"""Where heads and neurons are: literal lines of each layout, and the architectures that people use."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers

from fineprune.pruning.anatomy import HeadSizes, blocks_of, fused_lines, place_of
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune.pruning.targets import find_targets

SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
BART = {f"{stack}_{name}": 2 for stack in ("encoder", "decoder") for name in ("layers", "attention_heads")}
WAV2VEC2 = {"conv_dim": (4, 4), "conv_stride": (2, 2), "conv_kernel": (2, 2), "num_conv_pos_embeddings": 4}
FALCON = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}

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
    "Bloom": (
        "ForCausalLM",
        {"vocab_size": 20, "hidden_size": 8, "n_layer": 2, "n_head": 2},
        {"transformer.h": FUSED},
    ),
    "Falcon": ("ForCausalLM", FALCON, {"transformer.h": FUSED}),
    "Falcon, grouped": (
        "ForCausalLM",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        {"transformer.h": FUSED},
    ),
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


@pytest.fixture(scope="module", params=MODELS)
def named_model(request):
    """Each of `MODELS` with its name."""
    head, settings, _ = MODELS[request.param]
    kind = request.param.partition(",")[0]
    if kind in ("ViT", "Wav2Vec2"):
        settings = {key: value for key, value in settings.items() if key != "max_position_embeddings"}
    config = getattr(transformers, f"{kind}Config")(**settings)
    torch.manual_seed(0)
    return request.param, getattr(transformers, f"{kind}{head}")(config).eval()


def test_every_target_has_its_place(named_model):
    name, model = named_model
    expected = MODELS[name][2]
    found: dict[tuple[str, int | None], list[str]] = {}
    for target in find_targets(model):
        stack, layer, what = place_of(target)
        found.setdefault((stack, layer), []).append(what)
    numbers = [0] if name == "Albert" else [0, 1]
    assert {place: sorted(kinds) for place, kinds in found.items()} == {
        (stack, number): kinds for stack, kinds in expected.items() for number in numbers
    }


class Shaped(NamedTuple):
    name: str
    shape: tuple[int, int]


def one_block(matrices, **config):
    (block,) = blocks_of([Shaped(f"layers.0.{name}", shape) for name, shape in matrices.items()], config)
    return block


def lines_of(half, unit):
    """The lines of one unit by matrix and kind."""
    return {(part.matrix.rpartition(".")[2], part.kind): part.of(unit).tolist() for part in half.lines}


def test_lines_of_grouped_heads():
    block = one_block(
        {
            "self_attn.q_proj": (8, 8),
            "self_attn.k_proj": (4, 8),
            "self_attn.v_proj": (4, 8),
            "self_attn.o_proj": (8, 8),
        },
        num_attention_heads=4,
    )
    (attention,) = block.attentions
    assert attention.sizes == HeadSizes(heads=4, groups=2, size=2)
    assert lines_of(attention, 1) == {
        ("q_proj", "Q"): [4, 5, 6, 7],
        ("k_proj", "K"): [2, 3],
        ("v_proj", "V"): [2, 3],
        ("o_proj", "O"): [4, 5, 6, 7],
    }
    assert [part.axis for part in attention.lines] == [0, 0, 0, 1]
    # Dim 1 of group 1 is unit 3: a row of K and V, and of Q and O a line of each head that shares it.
    assert [(part.kind, part.of(3).tolist()) for part in attention.dims("Q", "K", "V", "O")] == [
        ("Q", [5, 7]),
        ("K", [3]),
        ("V", [3]),
        ("O", [5, 7]),
    ]
    assert block[:2] == ("layers", 0)
    assert block.feed_forwards == ()


def test_lines_of_heads_of_another_size_than_the_hidden_one_shared_out():
    matrices = {"attention.q_proj": (12, 8), "attention.v_proj": (6, 8), "attention.o_proj": (8, 12)}
    (attention,) = one_block(matrices, num_attention_heads=4, head_dim=3).attentions
    assert attention.sizes == (4, 2, 3)
    assert lines_of(attention, 0)["o_proj", "O"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("attn.Wqkv", {"Q": [2, 3], "K": [8, 9], "V": [14, 15]}),
        ("attention.query_key_value", {"Q": [6, 7], "K": [8, 9], "V": [10, 11]}),
    ],
)
def test_lines_of_one_matrix_for_q_k_and_v(name, lines):
    (attention,) = one_block({name: (18, 6)}, num_attention_heads=3).attentions
    assert attention.sizes == (3, 3, 2)
    assert {part.kind: part.of(1).tolist() for part in attention.lines} == lines
    assert {part.axis for part in attention.lines} == {0}


def test_lines_of_one_grouped_matrix_for_q_k_and_v():
    matrices = {"self_attn.qkv_proj": (16, 8), "self_attn.o_proj": (8, 8)}  # 4 heads and 2 groups of 2
    (attention,) = one_block(matrices, num_attention_heads=4).attentions
    assert {part.kind: part.of(1).tolist() for part in attention.lines} == {
        "Q": [4, 5, 6, 7],
        "K": [10, 11],
        "V": [14, 15],
    } | {"O": [4, 5, 6, 7]}


def test_fused_lines():
    def lists(*arguments, **options):
        return {kind: lines.tolist() for kind, lines in fused_lines(*arguments, **options).items()}

    assert lists(HeadSizes(2, 1, 1), interleaved=True) == {"Q": [0, 1], "K": [2], "V": [3]}
    assert lists(HeadSizes(4, 2, 1), interleaved=True) == {"Q": [0, 1, 4, 5], "K": [2, 6], "V": [3, 7]}
    assert lists(HeadSizes(2, 2, 2), has_query=False) == {"K": [0, 1, 2, 3], "V": [4, 5, 6, 7]}


def test_lines_of_a_gated_feed_forward_in_one_matrix():
    (forward,) = one_block({"mlp.gate_up_proj": (10, 4), "mlp.down_proj": (4, 5)}).feed_forwards
    assert forward.neurons == 5
    rows = np.concatenate([part.of(2) for part in forward.lines if part.kind == "FFN in"])
    assert rows.tolist() == [2, 7]
    assert lines_of(forward, 2)["down_proj", "FFN out"] == [2]


def test_lines_of_conv1d_are_those_of_the_other_axis():
    block = one_block(  # hidden 4, two heads of 2, 8 neurons; as inputs x outputs
        {"attn.c_attn": (4, 12), "attn.c_proj": (4, 4), "mlp.c_fc": (4, 8), "mlp.c_proj": (8, 4)}, n_head=2
    )
    halves = (*block.attentions, *block.feed_forwards)
    assert {part.kind: part.axis for half in halves for part in half.lines} == dict.fromkeys("QKV", 1) | {
        "O": 0, "FFN in": 1, "FFN out": 0,
    }  # fmt: skip


def test_positions_that_are_projected_belong_to_their_heads():
    names = ("query_proj", "key_proj", "value_proj", "pos_query_proj", "pos_key_proj")
    matrices = {f"attention.self.{name}": (4, 4) for name in names} | {"attention.output.dense": (4, 4)}
    (attention,) = one_block(matrices, num_attention_heads=2).attentions
    assert all(part.of(1).tolist() == [2, 3] for part in attention.lines)
    assert len(attention.lines) == 6


def silence(model, half, unit, *, followers):
    """Set the lines of one unit to zero where they are read and, with `followers`, where they are made."""
    for part in half.lines:
        reads = part.kind in ("O", "FFN out")
        if reads or followers:
            module, lines = model.get_submodule(part.matrix), torch.from_numpy(part.of(unit))
            module.weight.index_fill_(part.axis, lines, 0)
            if not reads and module.bias is not None:
                module.bias[lines] = 0


@torch.no_grad()
def test_a_unit_is_silenced_where_it_is_read_as_where_it_is_made(named_model):
    """A line that belonged to another unit would silence that one too."""
    _, model = named_model
    for parameter in model.parameters():  # large enough that each unit matters
        parameter.normal_(0.0, 0.3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    inputs = probe_inputs(model)
    if getattr(model.config, "add_cross_attention", False):
        inputs["encoder_hidden_states"] = torch.randn(2, 5, 8)
    whole = outputs(model, inputs)
    targets = {name: module.weight for name, module in find_targets(model).items()}
    matrices = [Shaped(target, tuple(weight.shape)) for target, weight in targets.items()]
    blocks = blocks_of(matrices, model.config.to_dict())
    cut = []
    for half in (half for block in blocks for half in (*block.attentions, *block.feed_forwards)):
        answers = []
        for followers in (False, True):
            silence(model, half, 1 if len(np.unique(half.lines[0].units)) > 1 else 0, followers=followers)
            answers.append(outputs(model, inputs))
            model.load_state_dict(before)
        assert difference(answers[0], answers[1]) < 1e-5
        cut.append(difference(whole, answers[0]) > 1e-4)
    assert cut
    assert all(cut)
    named = {part.matrix for block in blocks for half in block[2] + block[3] for part in half.lines}
    assert named == set(targets)
