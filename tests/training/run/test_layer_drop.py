"""Layers left out at random while a model trains."""

from types import SimpleNamespace

import pytest
import torch
from support import tiny_bert
from torch import nn

from fineprune import FinepruneError
from fineprune.training.run import layer_drop
from fineprune.training.run.layer_drop import drop_layers
from fineprune.training.run.training_config import TrainingConfig


class Layer(nn.Module):
    """Adds 1 and counts its passes; gives a tuple, as many layers do."""

    def __init__(self, several):
        super().__init__()
        self.first, self.second, self.several = nn.Linear(2, 2), nn.Linear(2, 2), several

    def forward(self, hidden_states, mask=None):
        return (hidden_states + 1, "cache") if self.several else hidden_states + 1


class Stack(nn.Module):
    def __init__(self, count, several=False):
        super().__init__()
        self.layers = nn.ModuleList(Layer(several) for _ in range(count))

    def forward(self, state):
        for layer in self.layers:
            out = layer(hidden_states=state)
            state = out[0] if isinstance(out, tuple) else out
            assert not isinstance(out, tuple) or out[1] == "cache"
        return state


@pytest.mark.parametrize("several", [False, True])
def test_a_share_of_the_layers_gives_what_it_reads(several):
    model = Stack(400, several)
    drop_layers(model, 0.25)
    torch.manual_seed(0)
    first, second = (float(model.train()(torch.zeros(1))) for _ in range(2))
    assert first == pytest.approx(300, abs=40)  # four standard deviations of 8.7
    assert first != second  # drawn anew
    torch.manual_seed(0)
    assert float(model(torch.zeros(1))) == first
    assert float(model.eval()(torch.zeros(1))) == 400


def test_a_model_of_transformers(monkeypatch):
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids = torch.arange(1, 7).view(1, 6)
    whole = model.eval()(ids).logits
    drop_layers(model, 0.5)
    assert torch.equal(model(ids).logits, whole)
    model.train()
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.49))  # all layers are left out
    without = model(ids).logits
    without.sum().backward()
    assert model.bert.encoder.layer[0].intermediate.dense.weight.grad is None
    model.bert.encoder.layer = nn.ModuleList()
    assert torch.equal(model(ids).logits, without)


class Widens(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 4)

    def forward(self, state):
        return self.two(self.one(state))


def test_what_is_refused(monkeypatch):
    model = nn.ModuleList([Widens()])
    drop_layers(model, 0.99)
    torch.manual_seed(0)
    with pytest.raises(FinepruneError, match=r"layer_drop=0.99: 0 \(Widens\) does not give a state"):
        model[0](torch.zeros(1, 2))
    with pytest.raises(FinepruneError, match=r"training.layer_drop=1.0: must be a probability, in \[0, 1\)"):
        TrainingConfig(layer_drop=1.0)
    monkeypatch.setattr(layer_drop, "this_process", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(FinepruneError, match=r"layer_drop=0.1: each process would leave out other layers"):
        drop_layers(model, 0.1)
