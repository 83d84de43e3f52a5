"""Weights and multiply-adds by layer and half, by hand."""

import pytest
import torch
from architectures.models import make
from support import tiny_bert
from torch import nn

from fineprune import Costs, FinepruneError, PruningConfig, costs, prepare
from fineprune.pruning import costs as counting
from fineprune.pruning.layout import layout_of
from fineprune.pruning.resizing import resize
from fineprune.pruning.targets import find_targets


def bert_base(**widths):
    """BERT-base with some units in each layer; its weights are ones that take no memory."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig())
    blocks = layout_of(model)
    if widths:
        resize(
            model,
            {block.attentions[0].name: widths["heads"] for block in blocks}
            | {block.feed_forwards[0].name: widths["neurons"] for block in blocks},
        )
    for module in find_targets(model).values():
        module.weight = nn.Parameter(torch.ones(1).expand(module.weight.shape))
    return model


def test_bert_base():
    counted = costs(bert_base())
    assert isinstance(counted, Costs)
    # a layer: 4 * 768 * 768 + 2 * 768 * 3072 = 7,077,888 weights
    assert counted.weights == counted.nonzero_weights == 12 * 7_077_888
    layer = counted.halves[:2]
    assert [(half.layer, half.half, half.weights) for half in layer] == [
        (0, "attention", 2_359_296),
        (0, "feed-forward", 4_718_592),
    ]
    # 128 * 7,077,888 + 2 * 128 * 128 * 768 = 931,135,488
    assert sum(half.multiply_adds for half in layer) == 931_135_488
    assert counted.multiply_adds == counted.nonzero_multiply_adds == 11_173_625_856
    assert costs(bert_base(), length=384).multiply_adds == 35_332_816_896


def test_bert_base_with_3_heads_and_384_neurons_a_layer():
    counted = costs(bert_base(heads=3, neurons=384))
    assert counted.weights == 14_155_776
    assert counted.weights * 6 == 12 * 7_077_888
    assert counted.multiply_adds / 11_173_625_856 == pytest.approx(0.16892, abs=5e-6)
    assert counted.multiply_adds == counted.nonzero_multiply_adds


def test_zeros():
    """Hidden size 16, 2 heads of 8, 32 neurons: 1,024 weights in each half of a layer."""
    model = tiny_bert()
    with torch.no_grad():
        layer = model.bert.encoder.layer[1]
        layer.attention.output.dense.weight[:, :8] = 0  # 128 weights, a head
        layer.intermediate.dense.weight[0] = 0  # 16
    counted = costs(model, length=10)
    assert [half[2:] for half in counted.halves] == [
        # 10 * 1,024 + 2 * 10 * 10 * 8 * 2 heads = 13,440
        ("attention", 1024, 1024, 13_440, 13_440),
        ("feed-forward", 1024, 1024, 10_240, 10_240),
        ("attention", 1024, 896, 13_440, 8_960 + 1_600),
        ("feed-forward", 1024, 1008, 10_240, 10_080),
    ]
    assert (counted.weights, counted.nonzero_weights) == (4096, 3952)


def test_a_prepared_model_counts_its_masks():
    model = tiny_bert()
    prepare(model, PruningConfig("magnitude", 0.25, warmup=0, cooldown=1), 2).step()
    assert costs(model).nonzero_weights == 1024


def test_a_shared_layer_is_stored_once_and_runs_in_all_places():
    counted = costs(make("ALBERT"), length=1)
    assert counted.weights == 2048
    assert counted.multiply_adds == 2 * (2048 + 2 * 16)


def test_a_shared_weight_is_stored_once():
    model = tiny_bert()
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    counted = costs(model, length=1)
    assert counted.weights == 4096 - 512
    assert counted.multiply_adds == 4096 + 2 * 32


@pytest.mark.parametrize(("name", "half"), [("PoolFormer", "other"), ("SqueezeBERT", "attention")])
def test_blocks_whose_heads_are_not_known(name, half):
    model = make(name)
    counted = costs(model, length=1)
    assert counted.halves[0].half == half
    assert counted.weights == counted.multiply_adds


def test_printed():
    lines = str(costs(tiny_bert(), length=10)).splitlines()
    assert lines[0].split() == ["layer", "weights", "non-zero", "multiply-adds", "non-zero"]
    assert lines[1].split() == ["bert.encoder.layer.0", "attention", "1,024", "1,024", "13,440", "13,440"]
    assert lines[-2].split() == ["all", "4,096", "4,096", "47,360", "47,360"]
    assert lines[-1] == "for one text of 10 tokens"
    assert len({len(line) for line in lines[:-1]}) == 1


@pytest.mark.parametrize("length", [0, -1, 1.5, True, None])
def test_lengths_that_are_refused(length):
    with pytest.raises(
        FinepruneError, match=f"length={length}: give the number of tokens of a text, 1 or more"
    ):
        costs(tiny_bert(), length)


def test_a_sharded_model_is_refused(monkeypatch):
    monkeypatch.setattr(counting, "is_sharded", lambda _: True)
    with pytest.raises(FinepruneError, match="sharded over processes: load the result of gather_state_dict"):
        costs(tiny_bert())


def test_a_model_on_no_device_is_refused():
    with pytest.raises(FinepruneError, match=r"query: not in memory .*: load the model whole"):
        costs(tiny_bert().to("meta"))
