import pytest
import torch
from torch import nn

from fineprune.errors import FinepruneError
from fineprune.pruning.targets import find_targets, is_linear


def random_model(name, head=None):
    """A tiny transformer of random weights: two blocks, hidden size 16."""
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = {
        "Bert": {**small, "vocab_size": 30},
        "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 30},
        "Albert": {**small, "embedding_size": 8, "vocab_size": 30},
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 20},
        "T5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 30},
        "ViT": {**small, "image_size": 8, "patch_size": 4},
    }[name]
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}{head or 'Model'}")(config)


BERT_LAYER = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
DISTILBERT_LAYER = [
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "ffn.lin1",
    "ffn.lin2",
]
ALBERT_LAYER = ["attention.query", "attention.key", "attention.value", "attention.dense", "ffn", "ffn_output"]
GPT2_LAYER = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
T5_ATTENTION = ["q", "k", "v", "o"]
T5_ENCODER = [
    *(f"layer.0.SelfAttention.{name}" for name in T5_ATTENTION),
    "layer.1.DenseReluDense.wi",
    "layer.1.DenseReluDense.wo",
]
T5_DECODER = [
    *(f"layer.0.SelfAttention.{name}" for name in T5_ATTENTION),
    *(f"layer.1.EncDecAttention.{name}" for name in T5_ATTENTION),
    "layer.2.DenseReluDense.wi",
    "layer.2.DenseReluDense.wo",
]


def both(prefix, names):
    return [f"{prefix}.{index}.{name}" for index in (0, 1) for name in names]


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("Bert", "ForSequenceClassification", both("bert.encoder.layer", BERT_LAYER)),
        ("DistilBert", "ForSequenceClassification", both("distilbert.transformer.layer", DISTILBERT_LAYER)),
        # one layer, which all places share
        (
            "Albert",
            "ForSequenceClassification",
            [f"albert.encoder.albert_layer_groups.0.albert_layers.0.{name}" for name in ALBERT_LAYER],
        ),
        ("GPT2", "LMHeadModel", both("transformer.h", GPT2_LAYER)),
        (
            "T5",
            "ForConditionalGeneration",
            both("encoder.block", T5_ENCODER) + both("decoder.block", T5_DECODER),
        ),
    ],
)
def test_the_matrices_of_the_blocks_and_nothing_else(name, head, expected):
    found = find_targets(random_model(name, head))
    assert sorted(found) == sorted(expected)


def test_vit_prunes_its_blocks():
    model = random_model("ViT", "ForImageClassification")
    found = find_targets(model)
    assert len(found) == 12  # six matrices in each of two blocks
    assert sum(module.weight.numel() for module in found.values()) == 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert "classifier" not in found
    assert all(".0." in name or ".1." in name for name in found)


def test_the_models_order_and_its_own_modules():
    model = random_model("Bert")
    found = find_targets(model)
    assert list(found) == [name for name, _ in model.named_modules() if name in found]
    assert all(model.get_submodule(name) is module for name, module in found.items())


def test_conv1d_counts_as_linear():
    from transformers.pytorch_utils import Conv1D

    assert is_linear(Conv1D(4, 8))
    assert is_linear(nn.Linear(4, 8))
    assert not is_linear(nn.Embedding(4, 8))
    assert not is_linear(nn.Conv2d(1, 1, 1))


def block():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


class Blocks(nn.Module):
    def __init__(self, count=2, container=nn.ModuleList):
        super().__init__()
        blocks = [block() for _ in range(count)]
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(blocks) if container is nn.ModuleList else nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("container", [nn.ModuleList, nn.Sequential])
def test_any_model_of_repeated_blocks(container):
    found = find_targets(Blocks(container=container))
    assert list(found) == ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"]


def test_one_block_is_enough_in_a_list_only():
    assert list(find_targets(Blocks(1))) == ["blocks.0.0", "blocks.0.2"]
    with pytest.raises(FinepruneError, match="no linear layers inside repeated blocks"):
        find_targets(Blocks(1, nn.Sequential))


def test_a_list_of_single_layers_or_of_different_modules_is_no_repetition():
    model = Blocks()
    model.heads = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))  # a layer each
    model.parts = nn.ModuleList([block(), nn.TransformerEncoderLayer(4, 1, 8)])  # of two classes
    assert {name.split(".")[0] for name in find_targets(model)} == {"blocks"}


def test_a_model_without_blocks_says_which_layers_it_has():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(
        FinepruneError, match=r"Sequential has no linear .* targets=\[\.\.\.\] \(its linear layers: 0, 2\)"
    ):
        find_targets(model)
    with pytest.raises(FinepruneError, match="its linear layers: none"):
        find_targets(nn.ReLU())
    assert list(find_targets(model, ["2"])) == ["2"]


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["query"], 2),
        (["query", "key"], 4),
        (["attention.*"], 8),
        (["layer.0.*"], 6),
        (["encoder.layer.1.output.dense"], 1),
        (["output.dense"], 4),  # the attention's and the block's
        (["intermediate.den?e"], 2),
        (["classifier"], 1),  # a pattern reaches outside the blocks
        (["*"], 14),  # twelve, the pooler and the classifier
        (["query", "self.query"], 2),  # once each
    ],
)
def test_patterns_match_dotted_ends(targets, count):
    model = random_model("Bert", "ForSequenceClassification")
    assert len(find_targets(model, targets)) == count


def test_a_pattern_matches_whole_parts_of_a_name():
    model = random_model("Bert")
    for pattern in ("uery", "embeddings", "LayerNorm"):
        with pytest.raises(FinepruneError, match=f"targets: no linear layer matches '{pattern}'"):
            find_targets(model, [pattern])


@pytest.mark.parametrize(
    ("pattern", "near"), [("qurey", "query"), ("attention.self.kye", "key"), ("dence", "dense")]
)
def test_near_names(pattern, near):
    with pytest.raises(FinepruneError, match=rf"matches '{pattern}'; near names: .*\b{near}\b"):
        find_targets(random_model("Bert"), ["value", pattern])


def test_exclude():
    model = random_model("Bert")
    assert len(find_targets(model, exclude=["query"])) == 10
    assert len(find_targets(model, ["query", "key"], ["layer.0.*"])) == 2
    with pytest.raises(FinepruneError, match=r"exclude: no linear layer matches 'pooler\.dense'"):
        find_targets(model, exclude=["pooler.dense"])  # outside the targets
    with pytest.raises(FinepruneError, match=r"exclude=\['\*'\] leaves nothing to prune"):
        find_targets(model, exclude=["*"])
