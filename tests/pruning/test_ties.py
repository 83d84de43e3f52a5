"""Two ways of silencing a unit agree, or the structure is refused."""

import copy

import pytest
import torch
from architectures.models import make
from support import tiny_bert
from torch import nn

from fineprune import FinepruneError, PruningConfig, prepare

HEADS = {"attention": "head", "feed_forward": "neuron"}
NAMES = (
    "BERT RoBERTa DistilBERT ELECTRA ALBERT DeBERTa-v2 DeBERTa-v3 MPNet ModernBERT GPT-2 Llama Qwen2 Qwen3 "
    "BART ViT Wav2Vec2 T5"
)


@pytest.mark.parametrize("name", [*NAMES.split(), "T5 v1.1"])
def test_heads_and_neurons_of_real_architectures(name):
    model = make(name)
    before = copy.deepcopy(model.state_dict())
    prepare(copy.deepcopy(model), PruningConfig("magnitude", 0.5, structure=HEADS), 10)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_half_precision_is_tested_in_float32():
    prepare(tiny_bert().bfloat16(), PruningConfig("magnitude", 0.5, structure=HEADS), 10)


class Blocks(nn.Module):
    """Feed-forwards of a model without a configuration."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(8, 16), "fc2": nn.Linear(16, 8)}) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["fc2"](torch.relu(layer["fc1"](x)))
        return x


class ReadTwice(Blocks):
    """The first neurons are read by another matrix too."""

    def __init__(self):
        super().__init__()
        self.skip = nn.Linear(16, 8)
        for layer in self.layers:
            nn.init.constant_(layer["fc2"].weight[:, 0], 1.0)  # the unit that is tested first
            nn.init.constant_(layer["fc1"].bias[:1], 9.0)  # and which every probe opens

    def forward(self, x):
        return self.skip(torch.relu(self.layers[1]["fc1"](x))) + super().forward(x)


def test_weights_that_something_else_reads():
    model = ReadTwice()
    before = copy.deepcopy(model.state_dict())
    config = PruningConfig("magnitude", 0.5, structure={"feed_forward": "neuron"}, targets="layers.*")
    message = r"layers\.1\.fc2: silencing neuron 0 where it is read and where it is made gives"
    with pytest.raises(FinepruneError, match=message):
        prepare(model, config, 10, probe={"x": torch.ones(2, 8)})
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_model_that_needs_a_probe():
    config = PruningConfig("magnitude", 0.5, structure={"feed_forward": "neuron"})
    with pytest.raises(FinepruneError, match=r"Blocks has no configuration .*prepare\(…, probe="):
        prepare(Blocks(), config, 10)
    with pytest.raises(FinepruneError, match=r"Blocks does not take the inputs .* fitting ones with probe="):
        prepare(Blocks(), config, 10, probe={"y": torch.ones(2, 8)})
    pruner = prepare(Blocks(), config, 10, probe={"x": torch.ones(2, 8)})
    assert [target.masked.grid.kind for target in pruner.targets] == ["neuron"] * 2
    model = Blocks()
    for layer in model.layers:
        nn.init.constant_(layer["fc1"].bias, -9.0)  # every neuron is closed for this probe
    with pytest.raises(FinepruneError, match="no answer of the model depends on neuron"):
        prepare(model, config, 10, probe={"x": torch.zeros(2, 8)})
