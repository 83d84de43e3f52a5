"""Heads and neurons of live models, of every architecture of the table."""

import pytest
from architectures.models import make

from fineprune.pruning.layout import layout_of


@pytest.mark.parametrize(
    ("name", "sizes", "neurons"),
    [
        ("BERT", (2, 2, 8), 32),
        ("ALBERT", (2, 2, 8), 32),
        ("DeBERTa-v2", (2, 2, 8), 32),
        ("ModernBERT", (2, 2, 8), 32),
        ("GPT-2", (2, 2, 8), 64),
        ("Qwen3", (2, 1, 16), 32),
        ("T5", (2, 2, 8), 32),
        ("ViT", (2, 2, 8), 32),
    ],
)
def test_layout_of(name, sizes, neurons):
    for block in layout_of(make(name)):
        assert {tuple(attention.sizes) for attention in block.attentions} == {sizes}
        assert [forward.neurons for forward in block.feed_forwards] == [neurons]


def test_without_heads_that_can_be_told():
    assert layout_of(make("SqueezeBERT")) == []
    assert layout_of(make("PoolFormer")) == []
