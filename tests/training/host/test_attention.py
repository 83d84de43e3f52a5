import contextlib

import pytest
import torch
from support import tiny_bert
from torch import nn

from fineprune.training.host.attention import fused_attention, is_long

IDS = torch.tensor([[2, 5, 7, 1], [2, 6, 1, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


class Counted:
    """Counts the calls of torch's fused attention."""

    def __init__(self, monkeypatch):
        self.calls, fused = 0, nn.functional.scaled_dot_product_attention

        def attention(*args, **kwargs):
            self.calls += 1
            return fused(*args, **kwargs)

        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attention)


def test_fused_in_the_block_alone(monkeypatch):
    counted, model = Counted(monkeypatch), tiny_bert().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(IDS, attention_mask=MASK).logits
        assert counted.calls == 0
        with fused_attention(model):
            fused = model(IDS, attention_mask=MASK).logits
        assert counted.calls == model.config.num_hidden_layers
        torch.testing.assert_close(fused, eager)
        assert torch.equal(model(IDS, attention_mask=MASK).logits, eager)
    assert model.config._attn_implementation == "eager"


def test_eager_again_after_an_error():
    model = tiny_bert()
    model.set_attn_implementation("eager")
    with pytest.raises(KeyError), fused_attention(model):
        raise KeyError
    assert model.config._attn_implementation == "eager"


def test_other_models_are_left(monkeypatch):
    model = tiny_bert()
    with fused_attention(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    with fused_attention(model):
        assert model.config._attn_implementation == "eager"
    with fused_attention(nn.Linear(2, 2)):
        pass


def test_long_is_by_the_padded_batch():
    assert not is_long({"input_ids": torch.zeros(2, 191)})
    assert is_long({"input_ids": torch.zeros(2, 192)})
    assert not is_long({"pixel_values": torch.zeros(2, 3, 224, 224)})


def test_gradients_are_the_same_in_the_block():
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.set_attn_implementation("eager")
    gradients = []
    for block in (contextlib.nullcontext, lambda: fused_attention(model)):
        model.zero_grad()
        with block():
            model(IDS, attention_mask=MASK, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([entry.grad for entry in model.parameters()])
    torch.testing.assert_close(*gradients)
