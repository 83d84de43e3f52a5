import pytest
import torch
from support import tiny_bert
from torch import nn

from fineprune.training.host.attention import fused_attention

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
